"""The base, how it is held, its template and the adapter: what all four tools have under different names."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.places import looks_quantised, looks_unlike_llama
from finetune.recipe.base_checks import base_problems

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a LLaMA, without the head."""
_ALL = ("all", "all-linear", "all_linear")
_TEMPLATES = {
    "llama3": "llama3",
    "llama2": "llama2",
    "llama-2": "llama2",
    "alpaca": "alpaca",
    "vicuna": "vicuna",
    "vicuna_v1.1": "vicuna",
    "tokenizer_default": "auto",
    "empty": "plain",
}
"""Their name of a chat format → ours. Both write the same format under it."""


def base(draft: Draft, section: Section, key: str) -> None:
    """Their model: a folder or a hub id. A model of another design is told, and stays for the user to replace."""
    given = section.text(key)
    if given is None:
        section.account.problem(section.at(key), f"the file names no model ({key}): add it, a recipe needs its base")
        return
    written, missing = draft.places.folder(given)
    draft.carry(section, key, ("model", "base"), written, missing, Fate.DECIDE if missing else None)
    found = draft.places.find(given)
    if found is not None and found.is_dir():
        for wrong, hint in base_problems(found):
            draft.account.decide(wrong + (f" ({hint})" if hint else ""))
    elif looks_unlike_llama(given):
        draft.account.decide(
            f"model.base: {given} does not look like a LLaMA by its name; only LLaMA text models (LLaMA 1, Llama 2, 3, "
            "3.1, 3.2 1B and 3B, 3.3, and what is built on them) can be trained: give another base"
        )
    elif looks_quantised(given):
        draft.account.decide(
            f"model.base: {given} holds quantised weights by its name: give the original checkpoint; model.load_in "
            "quantises it while it is loaded"
        )


def revision(draft: Draft, section: Section, key: str) -> None:
    if given := section.text(key):
        if given == "main":
            section.tell(key, Fate.LEFT_OUT, "the main branch is what is taken where model.revision is not given")
        else:
            draft.carry(section, key, ("model", "revision"), given)


def held_in(draft: Draft, section: Section, four: str, eight: str, otherwise: str, why: str) -> None:
    """load_in_4bit, load_in_8bit or neither."""
    path = ("model", "load_in")
    if section.flag(four):
        draft.carry(section, four, path, "nf4")
        draft.also(section, eight, path)
    elif section.flag(eight):
        draft.carry(section, eight, path, "int8")
        draft.also(section, four, path)
    else:
        draft.put(path, otherwise, why)
        for key in (four, eight):
            section.tell(key, Fate.CARRIED, f"→ model.load_in {otherwise}")


def precision(draft: Draft, section: Section) -> None:
    """bf16 and fp16 of transformers' trainer."""
    same = "→ model.compute auto: bf16 on a GPU that has it"
    said = str(section.raw("bf16")).lower()
    if said in ("true", "auto", "yes", "full"):
        section.tell("bf16", Fate.CARRIED, same)
    elif "bf16" in section:
        section.tell("bf16", Fate.CHANGED, f"{same}; for fp32 set model.compute: fp32, with load_in nf4, int8 or fp32")
    if str(section.raw("fp16")).lower() in ("true", "yes"):
        section.tell("fp16", Fate.CHANGED, f"{same}; there is no fp16 here, with its loss scaling")
    elif "fp16" in section:
        section.tell("fp16", Fate.EMPTY)


def template(draft: Draft, section: Section, key: str, absent: str) -> None:
    """Their chat template by its name. absent: why auto stands there where they name none."""
    path = ("model", "template")
    given = section.text(key)
    if given is None:
        draft.put(path, "auto", absent)
        return
    ours = _TEMPLATES.get(given.lower())
    if ours is not None:
        draft.carry(section, key, path, ours)
        return
    note = f"there is no template {given} here; auto is the base's own, `finetune inspect` shows it"
    draft.carry(section, key, path, "auto", note, Fate.DECIDE)


def system_prompt(draft: Draft, section: Section, key: str, note: str = "") -> None:
    if given := section.text(key):
        draft.carry(section, key, ("model", "system"), given, note)


def targets(draft: Draft, section: Section, key: str, given: Sequence[str]) -> None:
    """Which layers get LoRA. given: names, or one word for all."""
    path = ("adapter", "targets")
    names = [name for name in given if name != "lm_head"]
    if len(given) == 1 and given[0] in _ALL:
        draft.carry(section, key, path, "all-linear")
    elif "embed_tokens" in names:
        names.remove("embed_tokens")
        note = "no LoRA on embeddings here: adapter.modules_to_save trains them in full"
        draft.carry(section, key, path, names or "all-linear", note, Fate.DECIDE)
    elif "lm_head" in given:
        note = "no LoRA on the head here: adapter.modules_to_save: [lm_head] trains it in full"
        draft.carry(section, key, path, _short(names), note, Fate.DECIDE)
    elif len(given) == 1 and any(mark in given[0] for mark in "*|\\(["):
        draft.carry(section, key, path, given[0])
    elif strange := [name for name in names if name.rpartition(".")[2] not in LINEAR]:
        note = f"a LLaMA has no linear layer {', '.join(strange)}: it has {', '.join(LINEAR)}"
        draft.carry(section, key, path, _short([name for name in names if name not in strange]), note, Fate.DECIDE)
    else:
        draft.carry(section, key, path, _short(names))


def _short(names: Sequence[str]) -> str | list[str]:
    return "all-linear" if set(names) in (set(LINEAR), set()) else list(dict.fromkeys(names))


def start_from(draft: Draft, section: Section, key: str, given: str, note: str = "", *, decide: bool = False) -> None:
    """An adapter of theirs to go on from: a folder in PEFT's layout, which is ours too. note: of what differs."""
    found = draft.places.find(given)
    written = draft.places.written(found, given) if found else given if "/" in given else f"./{given}"
    if found is None:
        note = f"no folder {given} from here: write where the adapter is; one on the hub has to be downloaded"
    fate = Fate.DECIDE if decide or found is None else None
    draft.carry(section, key, draft.of_stage("start_from"), written, note, fate)


def number_of_adapter(draft: Draft, section: Section, key: str, ours: str, default: float, named: str = "") -> float:
    """lora_r, lora_alpha, lora_dropout and their like; returns what was written."""
    path = ("adapter", ours)
    value = section.whole(key) if ours == "rank" else section.number(key)
    if value is None:
        draft.default(path, default, named or key)
        return default
    written = float(value) if ours != "rank" else value
    draft.carry(section, key, path, written)
    return written


def initial(draft: Draft, section: Section, key: str, given: str) -> None:
    """How LoRA begins. What peft cannot begin so is told; default stands there then."""
    model, adapter = draft.recipe["model"], draft.recipe["adapter"]
    if given not in ("gaussian", "orthogonal", "pissa", "olora"):
        section.decide(key, f"there is no init {given} here (adapter.init)")
    elif given != "gaussian" and model["load_in"] in ("nf4", "int8"):
        section.decide(key, f"init {given} reads the base's weights, which 4 or 8 bits do not have: load_in bf16")
    elif given in ("pissa", "olora") and (adapter.get("dora") or adapter.get("modules_to_save")):
        section.decide(key, f"init {given} goes neither with dora nor with modules_to_save here")
    elif given == "orthogonal" and adapter["rank"] % 2:
        section.decide(key, "init orthogonal needs an even rank")
    else:
        draft.carry(section, key, ("adapter", "init"), given)


def dropout_off(draft: Draft, section: Section, what: str) -> None:
    """Trainers that switch dropout off whatever the file says, as TRL's do where answers are compared."""
    path = ("adapter", "dropout")
    draft.put(path, 0.0, f"{what} switches dropout off")
    draft.also(section, "lora_dropout", path, f"{what} switches it off")


def full_training(draft: Draft, section: Section, key: str, what: str) -> None:
    """They train all weights. An adapter is what is trained here; said loudly, for memory, rate and result differ."""
    note = f"{what} trains all weights of the model; here an adapter is trained, LoRA on every linear layer"
    draft.put(("adapter", "rank"), 64, note)
    draft.put(("adapter", "alpha"), 32.0, "rank 64, alpha 32 on all layers is the nearest that LoRA comes to it")
    draft.put(("adapter", "targets"), "all-linear")
    section.tell(key, Fate.CHANGED, f"{note}; `finetune merge` makes a whole model of it")
    draft.account.decide(
        f"{note}. The learning rate is auto in its place: LoRA needs about ten times full fine-tuning's "
        "(docs/learning_rate.md)"
    )
