"""torchtune's YAML: components by `_component_`, and ${…} for values that stand elsewhere in the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune.migrate import model, rows
from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.torchtune_data import add_datasets
from finetune.migrate.torchtune_loop import preference, training

_NAMES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_MLP = ["gate_proj", "up_proj", "down_proj"]
_REFUSED = {
    "teacher_model": "knowledge distillation is not imported: write a recipe by hand",
    "teacher_checkpointer": "knowledge distillation is not imported: write a recipe by hand",
    "policy_model": "PPO is not imported: write a stage of kind ppo (docs/ppo.md)",
    "reward_and_value_model": "PPO is not imported: write a stage of kind ppo (docs/ppo.md)",
    "grpo_samples": "GRPO is not imported: write a stage of kind grpo (docs/trl.md)",
    "grpo_size": "GRPO is not imported: write a stage of kind grpo (docs/trl.md)",
}
_LLAMAS = ("llama2", "llama3", "llama3_1", "llama3_2", "llama3_3", "code_llama2")


def fill(draft: Draft, raw: Section) -> None:
    """Write the recipe of their file into the draft, and tell what became of each key."""
    values = _resolved(raw.values, raw.values)
    theirs = Section(raw.account, values, raw.path)
    for key, words in _REFUSED.items():
        if key in theirs:
            theirs.account.problem(theirs.at(key), words)
            return
    loss = component(theirs.section("loss"))
    compared = loss.startswith("rlhf.") or loss.endswith(("DPOLoss", "RSOLoss", "IPOLoss"))
    draft.begin("dpo" if compared else "sft", f"loss: {loss or 'none'}")
    _base(draft, theirs)
    full = _adapter(draft, theirs)
    _template_and_length(draft, theirs)
    _precision(draft, theirs)
    _track(draft, theirs)
    packed = add_datasets(draft, theirs)
    rows.needs_rows(draft, theirs, "dataset")
    if draft.stage == "dpo":
        preference(draft, theirs.section("loss"))
    else:
        theirs.tell("loss", Fate.CARRIED, "→ kind: sft; its logits are never held whole")
    training(draft, theirs, full)
    if packed:
        draft.account.decide(
            "train.batch_size: packed rows of theirs hold up to max_seq_len tokens each; here it counts rows: multiply "
            "it by the rows that fit into one (`finetune inspect` shows the lengths)"
        )


def component(section: Section) -> str:
    """The path of a component without torchtune's own name: models.llama3_1.lora_llama3_1_8b."""
    return re.sub(r"^torchtune\.", "", section.text("_component_") or "")


def _resolved(value: Any, top: Mapping[str, Any], depth: int = 0) -> Any:
    """${a.b} replaced by what stands there; what leads nowhere stays as it is."""
    if isinstance(value, Mapping):
        return {key: _resolved(inner, top, depth) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, top, depth) for inner in value]
    if not isinstance(value, str) or "${" not in value or depth > 8:
        return value

    def found(path: str) -> Any:
        place: Any = top
        for key in path.split("."):
            place = place.get(key) if isinstance(place, Mapping) else None
        return place

    if whole := re.fullmatch(r"\$\{([\w.]+)\}", value):
        inner = found(whole[1])
        return value if inner is None else _resolved(inner, top, depth + 1)
    text = re.sub(r"\$\{([\w.]+)\}", lambda match: str(match[0] if found(match[1]) is None else found(match[1])), value)
    return _resolved(text, top, depth + 1) if text != value else value


def _base(draft: Draft, theirs: Section) -> None:
    checkpointer = theirs.section("checkpointer")
    model.base(draft, checkpointer, "checkpoint_dir")
    meta = component(checkpointer).endswith("FullModelMetaCheckpointer")
    fate = Fate.DECIDE if meta else Fate.CARRIED
    note = "a checkpoint in Meta's own format is not read: give its Hugging Face form" if meta else "→ model.base"
    checkpointer.tell("_component_", fate, note)
    for key in ("checkpoint_files", "model_type"):
        checkpointer.tell(key, Fate.LEFT_OUT, "found from the folder itself")
    for key in ("recipe_checkpoint", "adapter_checkpoint", "safe_serialization"):
        checkpointer.tell(key, Fate.LEFT_OUT, "a run that was stopped goes on by itself")
    family = component(theirs.section("model")).removeprefix("models.").partition(".")[0]
    if family and family not in _LLAMAS:
        theirs.account.decide(
            f"model.base: torchtune.models.{family} is no LLaMA text model; only LLaMA 1 to 3.3 can be trained: give "
            "another base"
        )


def _adapter(draft: Draft, theirs: Section) -> bool:
    """Returns whether they train all weights."""
    section = theirs.section("model")
    name = component(section).rpartition(".")[2]
    quantised = bool(section.flag("quantize_base")) or name.startswith("qlora")
    path = ("model", "load_in")
    held = {"fp32": "fp32"}.get(theirs.text("dtype") or "", "bf16")
    if quantised:
        draft.put(path, "nf4", "model.quantize_base" if "quantize_base" in section else f"model: {name}")
    else:
        draft.put(path, held, f"dtype: {theirs.text('dtype')}" if "dtype" in theirs else "model is not quantised")
    section.tell("quantize_base", Fate.CARRIED, "→ model.load_in")
    theirs.tell("dtype", Fate.CARRIED, "→ model.load_in and model.compute")
    if "lora" not in name and "dora" not in name:
        model.full_training(draft, section, "_component_", f"model: {name or 'without LoRA'}")
        return True
    section.tell(
        "_component_", Fate.CARRIED, "→ adapter, and model.load_in of a qlora; the size is found from the base"
    )
    model.number_of_adapter(draft, section, "lora_rank", "rank", 8)
    model.number_of_adapter(draft, section, "lora_alpha", "alpha", 16.0)
    model.number_of_adapter(draft, section, "lora_dropout", "dropout", 0.0)
    if section.flag("use_dora") or name.startswith(("dora", "qdora")):
        draft.put(("adapter", "dora"), True, f"model: {name}")
        section.tell("use_dora", Fate.CARRIED, "→ adapter.dora")
    names = [_NAMES.get(entry, entry) for entry in section.words("lora_attn_modules")]
    if section.flag("apply_lora_to_mlp"):
        names += _MLP
    if section.flag("apply_lora_to_output"):
        names.append("lm_head")
    model.targets(draft, section, "lora_attn_modules", names or ["q_proj", "v_proj"])
    section.tell("apply_lora_to_mlp", Fate.CARRIED, "→ adapter.targets")
    if not section.flag("apply_lora_to_output"):
        section.tell("apply_lora_to_output", Fate.EMPTY)
    else:
        section.decide(
            "apply_lora_to_output", "no LoRA on the head: adapter.modules_to_save: [lm_head] trains it in full"
        )
    return False


def _template_and_length(draft: Draft, theirs: Section) -> None:
    tokenizer = theirs.section("tokenizer")
    draft.put(("model", "template"), "auto", "the format of the base, as torchtune's tokenizer writes it")
    path = ("model", "max_length")
    if (length := tokenizer.whole("max_seq_len")) is not None:
        draft.carry(tokenizer, "max_seq_len", path, length)
    else:
        draft.put(path, 4096, "tokenizer.max_seq_len is not set: no limit there, a limit for memory here")
        if "max_seq_len" in tokenizer.values:
            tokenizer.tell("max_seq_len", Fate.CHANGED, "→ model.max_length 4096: there is always a limit here")
        else:
            draft.account.decide(
                "model.max_length: torchtune sets no limit where max_seq_len is absent; 4096 stands here"
            )
    for key in ("_component_", "path", "merges_file", "special_tokens_path"):
        tokenizer.tell(key, Fate.LEFT_OUT, "the tokenizer is the base's own")
    if "prompt_template" in tokenizer:
        tokenizer.decide("prompt_template", "a chat format is one of docs/families.md (model.template)")
    rows.too_long(draft, "max_seq_len")


def _precision(draft: Draft, theirs: Section) -> None:
    if theirs.text("dtype") == "fp16":
        theirs.tell("dtype", Fate.CHANGED, "→ model.compute auto: bf16 on a GPU that has it; there is no fp16 here")
    device = theirs.text("device")
    if device in ("cuda", "cpu"):
        draft.carry(theirs, "device", ("model", "device"), device)


def _track(draft: Draft, theirs: Section) -> None:
    logger = theirs.section("metric_logger")
    if component(logger).endswith("WandBLogger"):
        path = ("track", "wandb", "project")
        if project := logger.text("project"):
            draft.carry(logger, "project", path, project)
        else:
            draft.default(path, "torchtune", "metric_logger.project")
        if entity := logger.text("entity"):
            draft.carry(logger, "entity", ("track", "wandb", "entity"), entity)
        logger.tell("_component_", Fate.CARRIED, "→ track.wandb")
    elif component(logger).endswith("TensorBoardLogger"):
        draft.carry(logger, "_component_", ("track", "tensorboard"), True)
    else:
        logger.tell(
            "_component_",
            Fate.LEFT_OUT,
            "metrics are written to metrics.jsonl in any case; track has wandb and tensorboard",
        )
