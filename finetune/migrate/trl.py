"""TRL's YAML for `trl sft|dpo|reward|kto --config`: arguments of its scripts. The file does not say which command."""

from __future__ import annotations

import re

from finetune.migrate import loop, model, rows
from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.track import by_report_to
from finetune.migrate.trl_data import add_data
from finetune.migrate.trl_losses import kto, preference, reward

KINDS = ("sft", "reward", "dpo", "kto", "orpo", "cpo")
"""TRL's commands that are imported."""
_ONLINE = ("num_generations", "reward_funcs", "reward_model_name_or_path", "num_iterations", "use_vllm")
_SIGNS = (
    ("kto", ("desirable_weight", "undesirable_weight")),
    ("reward", ("center_rewards_coefficient",)),
    ("cpo", ("simpo_gamma", "cpo_alpha")),
    ("sft", ("assistant_only_loss", "completion_only_loss", "dataset_text_field", "packing", "max_seq_length")),
    ("dpo", ("beta", "label_smoothing", "precompute_ref_log_probs", "max_prompt_length", "rpo_alpha",
             "ref_model_mixup_alpha", "f_divergence_type", "loss_weights", "use_weighting")),
)  # fmt: skip
"""Keys that only these commands have."""
_RATES = {"sft": 2e-5, "reward": 1e-4}
"""TRL's default learning rates; the others have 1e-6."""


def fill(draft: Draft, theirs: Section, kind: str | None) -> None:
    """Write the recipe of their file into the draft, and tell what became of each key."""
    kind, why, certain = (kind, "as told with --kind", True) if kind else _kind(draft, theirs)
    if online := [key for key in _ONLINE if key in theirs]:
        words = "GRPO and RLOO are not imported: rewards there are Python functions or other models"
        theirs.account.problem(theirs.at(online[0]), words, "write a stage of kind grpo or rloo: docs/trl.md")
        return
    ours = kind if kind in ("sft", "reward") else "dpo"
    draft.begin(ours, f"trl {kind}: {why}")
    if not certain:
        draft.account.decide(
            f"TRL's file does not say which command it is for: taken for `trl {kind}`; --kind says another"
        )
    model.base(draft, theirs, "model_name_or_path")
    model.revision(draft, theirs, "model_revision")
    _held_in(draft, theirs)
    full = _adapter(draft, theirs, kind)
    draft.put(("model", "template"), "auto", "the base's own, as TRL takes the tokenizer's")
    _length(draft, theirs, kind)
    model.precision(draft, theirs)
    by_report_to(draft, theirs)
    held_out = add_data(draft, theirs, kind)
    if kind != "reward":  # its rows over max_length are left out there as here
        rows.too_long(draft, "max_length")
    if kind == "sft":
        _sft(draft, theirs)
    elif kind == "reward":
        reward(draft, theirs)
    elif kind == "kto":
        kto(draft, theirs)
    else:
        preference(draft, theirs, kind)
    defaults = loop.Defaults(8, 3.0, "linear", 0.0, _RATES.get(kind, 1e-6), checkpointing=True)
    loop.training(draft, theirs, loop.Names(), defaults, full=full, held_out=held_out)
    if kind == "kto":
        loop.pairs_at_once(draft)


def _kind(draft: Draft, theirs: Section) -> tuple[str, str, bool]:
    """(command, what tells it, whether it is certain): by keys that only one has, else by the file's name."""
    named = re.findall(r"(?<![a-z])(sft|dpo|reward|kto|orpo|cpo)(?![a-z])", str(draft.places.theirs.name).lower())
    for kind, keys in _SIGNS:
        if found := [key for key in keys if key in theirs]:
            if kind == "dpo" and named and named[-1] in ("kto", "orpo"):
                break  # these have beta too
            return kind, f"by {found[0]}", True
    if named:
        return named[-1], "by the file's name", True
    return "sft", "nothing in the file tells", False


def _held_in(draft: Draft, theirs: Section) -> None:
    dtype = theirs.text("dtype") or theirs.text("torch_dtype")
    key = "dtype" if "dtype" in theirs else "torch_dtype"
    held = {"float32": "fp32"}.get(dtype or "", "bf16")
    why = f"{key}: {dtype}" if dtype else "checkpoints of LLaMAs are of 16 bits; TRL's default holds them in 32"
    model.held_in(draft, theirs, "load_in_4bit", "load_in_8bit", held, why)
    if draft.recipe["model"]["load_in"] == held and dtype:
        note = "16 bits are bf16 here" if dtype == "float16" else ""
        theirs.tell(
            key, Fate.CHANGED if note else Fate.CARRIED, f"→ model.load_in {held}" + (f"; {note}" if note else "")
        )
    if theirs.text("bnb_4bit_quant_type") == "fp4":
        theirs.tell("bnb_4bit_quant_type", Fate.CHANGED, "→ model.load_in nf4, which is closer to the weights than fp4")


def _adapter(draft: Draft, theirs: Section, kind: str) -> bool:
    """Returns whether they train all weights."""
    if not theirs.flag("use_peft"):
        if "use_peft" not in theirs:
            draft.account.tell(theirs.at("use_peft"), None, Fate.EMPTY)
        model.full_training(draft, theirs, "use_peft", f"trl {kind} without use_peft")
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            theirs.tell(key, Fate.LEFT_OUT, "not read there without use_peft")
        return True
    theirs.tell("use_peft", Fate.CARRIED, "→ adapter; every recipe trains LoRA")
    model.number_of_adapter(draft, theirs, "lora_r", "rank", 16)
    model.number_of_adapter(draft, theirs, "lora_alpha", "alpha", 32.0)
    if kind != "sft" and theirs.flag("disable_dropout") is not False:
        model.dropout_off(draft, theirs, f"trl {kind} (disable_dropout)")
        theirs.tell("disable_dropout", Fate.CARRIED, "→ adapter.dropout 0")
    else:
        model.number_of_adapter(draft, theirs, "lora_dropout", "dropout", 0.05)
    if names := theirs.words("lora_target_modules"):
        model.targets(draft, theirs, "lora_target_modules", names)
    else:
        draft.put(("adapter", "targets"), ["q_proj", "v_proj"], "default of peft for a LLaMA: no lora_target_modules")
    for key, ours in (("use_rslora", "rslora"), ("use_dora", "dora")):
        if (given := theirs.flag(key)) is not None:
            draft.carry(theirs, key, ("adapter", ours), given)
    if saved := theirs.words("lora_modules_to_save"):
        draft.carry(theirs, "lora_modules_to_save", ("adapter", "modules_to_save"), saved)
    return False


def _length(draft: Draft, theirs: Section, kind: str) -> None:
    path = ("model", "max_length")
    key = "max_seq_length" if "max_seq_length" in theirs else "max_length"
    if (length := theirs.whole(key)) is not None:
        draft.carry(theirs, key, path, length)
    elif key in theirs.values:
        draft.put(path, 4096, f"{key}: null is no limit there; here there is always one, for the memory")
        theirs.tell(key, Fate.CHANGED, "→ model.max_length 4096: there is always a limit here")
    else:
        draft.default(path, 1024, "max_length")


def _sft(draft: Draft, theirs: Section) -> None:
    path = draft.of_stage("loss_on")
    only = theirs.flag("assistant_only_loss")
    completion = theirs.flag("completion_only_loss")
    if completion is False:
        draft.carry(theirs, "completion_only_loss", path, "all")
        theirs.tell("assistant_only_loss", Fate.LEFT_OUT, "completion_only_loss: false trains on all")
    elif only or completion:
        draft.put(path, "answers")
        draft.also(theirs, "assistant_only_loss", path)
        draft.also(theirs, "completion_only_loss", path)
    else:
        draft.put(path, "answers", "theirs trains on prompts too where rows are messages: see above")
        draft.also(theirs, "assistant_only_loss", path)
        draft.account.decide(
            "loss_on: TRL trains on every token of rows of `messages` unless assistant_only_loss is true, and only on "
            "completions of rows with prompt and completion. Here answers are trained; loss_on: all is the other"
        )
    if theirs.words("loss_type") == ["nll"]:
        theirs.tell("loss_type", Fate.CARRIED, "the loss of kind sft")
    loop.packed(theirs, "packing", "max_length")
