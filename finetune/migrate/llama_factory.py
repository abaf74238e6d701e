"""LLaMA-Factory's YAML: one flat file, `stage` and `finetuning_type`, data by names of dataset_info.json."""

from __future__ import annotations

from finetune.migrate import loop, model, rows
from finetune.migrate.account import Fate, Section
from finetune.migrate.dataset_info import add_datasets
from finetune.migrate.draft import Draft
from finetune.migrate.llama_factory_ppo import fill_ppo
from finetune.migrate.track import by_report_to

_NAMES = loop.Names()
_DEFAULTS = loop.Defaults(micro=8, epochs=3.0, schedule="linear", warmup=0.0, learning_rate=5e-5, checkpointing=True)
_KINDS = {"pt": "sft", "sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "dpo", "ppo": "ppo"}
_LOSSES = ("sigmoid", "hinge", "ipo", "orpo", "simpo")


def fill(draft: Draft, theirs: Section) -> None:
    """Write the recipe of their file into the draft, and tell what became of each key."""
    _training_only(theirs)
    stage = theirs.text("stage") or "sft"
    if stage not in _KINDS:
        known = f"known are {', '.join(_KINDS)}"
        theirs.account.problem(theirs.at("stage"), f"unknown stage: {stage}", known)
        return
    draft.begin(_KINDS[stage], f"stage: {stage}" if "stage" in theirs else "default of LLaMA-Factory's stage: sft")
    theirs.tell("stage", Fate.CARRIED, f"→ kind: {_KINDS[stage]}")
    model.base(draft, theirs, "model_name_or_path")
    model.revision(draft, theirs, "model_revision")
    _quantised(draft, theirs)
    full = _adapter(draft, theirs)
    _template(draft, theirs, stage)
    model.system_prompt(draft, theirs, "default_system")
    length = theirs.whole("cutoff_len")
    if length is None:
        draft.default(("model", "max_length"), 2048, "cutoff_len")
    else:
        draft.carry(theirs, "cutoff_len", ("model", "max_length"), length)
    model.precision(draft, theirs)
    by_report_to(draft, theirs)
    held_out = _data(draft, theirs, stage)
    if stage in ("dpo", "kto"):
        _preference(draft, theirs, stage)
    loop.training(draft, theirs, _NAMES, _DEFAULTS, full=full, held_out=held_out and stage != "ppo")
    _checkpointing(draft, theirs)
    if stage == "ppo":
        fill_ppo(draft, theirs)
    if stage == "kto":
        loop.pairs_at_once(draft)
    _packing(theirs, stage)


def _training_only(theirs: Section) -> None:
    """Their files for export and for chatting look alike; nothing is trained by them."""
    told = {
        "export_dir": "this file exports a model: `finetune merge` and `finetune export` do that",
        "infer_backend": "this file is for inference: `finetune chat` and `finetune serve` do that",
    }
    for key, words in told.items():
        if key in theirs and "dataset" not in theirs:
            theirs.account.problem(theirs.at(key), words)
    if theirs.flag("do_predict") and not theirs.flag("do_train"):
        theirs.account.problem(theirs.at("do_predict"), "this file measures a model: `finetune eval` does that")
    theirs.account.raise_problems()


def _quantised(draft: Draft, theirs: Section) -> None:
    path = ("model", "load_in")
    bits = theirs.whole("quantization_bit")
    method = theirs.text("quantization_method") or "bnb"
    known = method in ("bnb", "bitsandbytes")
    if bits in (4, 8) and known:
        draft.carry(theirs, "quantization_bit", path, "nf4" if bits == 4 else "int8")
    elif bits is not None:
        note = f"{bits} bits by {method} are not here: nf4 is 4 bits, int8 is 8"
        draft.carry(theirs, "quantization_bit", path, "nf4" if bits <= 4 else "int8", note, Fate.DECIDE)
    else:
        draft.put(path, "bf16", "no quantization_bit")
    theirs.tell("quantization_method", Fate.CARRIED if known else Fate.DECIDE, "→ model.load_in, by bitsandbytes")
    if theirs.text("quantization_type") == "fp4":
        theirs.tell("quantization_type", Fate.CHANGED, "→ model.load_in nf4, which is closer to the weights than fp4")


def _adapter(draft: Draft, theirs: Section) -> bool:
    """Returns whether they train all weights, or some of the layers in full."""
    kind = theirs.text("finetuning_type") or "lora"
    if kind in ("full", "freeze"):
        what = "finetuning_type: full" if kind == "full" else "finetuning_type: freeze, where some layers are trained,"
        model.full_training(draft, theirs, "finetuning_type", what)
        return True
    if kind != "lora":
        theirs.decide("finetuning_type", f"{kind} is not here: LoRA is trained in its place")
    else:
        theirs.tell("finetuning_type", Fate.CARRIED, "→ adapter; every recipe trains LoRA")
    rank = model.number_of_adapter(draft, theirs, "lora_rank", "rank", 8)
    model.number_of_adapter(draft, theirs, "lora_alpha", "alpha", 2.0 * rank, "lora_alpha, twice lora_rank")
    if draft.stage == "dpo" and "lora_dropout" in theirs:
        model.dropout_off(draft, theirs, "the trainer of these stages")
    else:
        model.number_of_adapter(draft, theirs, "lora_dropout", "dropout", 0.0)
    if names := theirs.words("lora_target"):
        model.targets(draft, theirs, "lora_target", names)
    else:
        draft.default(("adapter", "targets"), "all-linear", "lora_target: all")
    for key, ours in (("use_rslora", "rslora"), ("use_dora", "dora")):
        if (given := theirs.flag(key)) is not None:
            draft.carry(theirs, key, ("adapter", ours), given)
    if saved := theirs.words("additional_target"):
        draft.carry(theirs, "additional_target", ("adapter", "modules_to_save"), saved)
    if theirs.flag("pissa_init"):
        model.initial(draft, theirs, "pissa_init", "pissa")
        theirs.tell("pissa_iter", Fate.LEFT_OUT, "the exact decomposition is taken")
        theirs.tell("pissa_convert", Fate.LEFT_OUT, "adapters are always written for the untouched base")
    _start(draft, theirs)
    return False


def _start(draft: Draft, theirs: Section) -> None:
    folders = theirs.words("adapter_name_or_path")
    if not folders:
        return
    key, note = "adapter_name_or_path", ""
    if len(folders) > 1:
        note = "several adapters, of which theirs merges all but the last into the base: merge those first"
    elif theirs.flag("create_new_adapter"):
        note = "theirs merges it and trains a new adapter; here the same adapter goes on"
    if note or draft.stage != "dpo":
        model.start_from(draft, theirs, key, folders[-1], note, decide=bool(note))
    else:
        note = "theirs compares with the bare base, here the frozen adapter is the reference"
        model.start_from(draft, theirs, key, folders[-1], note)


def _template(draft: Draft, theirs: Section, stage: str) -> None:
    if stage == "pt":
        draft.put(("model", "template"), "auto", "stage: pt trains raw text, which has no template")
        theirs.tell("template", Fate.LEFT_OUT, "stage: pt trains raw text, which has no template")
        return
    model.template(draft, theirs, "template", "no template is named: the base's own")


def _data(draft: Draft, theirs: Section, stage: str) -> bool:
    """data or prompts, held_out and what goes with them; returns whether there are held-out rows."""
    to = ("prompts",) if stage == "ppo" else ("data",)
    add_datasets(draft, theirs, "dataset", stage, to)
    rows.needs_rows(draft, theirs, "dataset", to)
    add_datasets(draft, theirs, "eval_dataset", stage, ("held_out", "data"))
    tests = draft.has(draft.of_stage("held_out", "data"))
    held_out = tests or rows.held_out_share(draft, theirs, "val_size")
    if tests:
        theirs.tell("val_size", Fate.EMPTY, "eval_dataset is measured on")
    rows.too_long(draft, "cutoff_len")
    if theirs.flag("train_on_prompt") and stage == "sft":
        draft.carry(theirs, "train_on_prompt", draft.of_stage("loss_on"), "all")
    if theirs.flag("mask_history"):
        note = "all answers are trained; a turn of format messages with weight: 0 is not (docs/data.md)"
        theirs.decide("mask_history", note)
    if theirs.flag("streaming"):
        theirs.decide(
            "streaming", "rows are read whole; streaming: true on a hub source, with take, reads its first ones"
        )
    if (strategy := theirs.text("mix_strategy")) is not None:
        if strategy == "concat":
            theirs.tell("mix_strategy", Fate.CARRIED, "→ data: all rows of all sources")
        else:
            theirs.decide("mix_strategy", "weight on each source says how much of it an epoch has (docs/data.md)")
    if "interleave_probs" in theirs:
        theirs.decide(
            "interleave_probs", "weight on each source, relative to its own length, in place of probabilities"
        )
    return held_out


def _preference(draft: Draft, theirs: Section, stage: str) -> None:
    path = draft.of_stage("loss")
    loss = theirs.text("pref_loss") or "sigmoid"
    if stage == "kto":
        draft.put(path, "kto", "stage: kto")
        theirs.tell("pref_loss", Fate.LEFT_OUT, "stage: kto has its own")
        loop.kto_weights(draft, theirs, "kto_chosen_weight", "kto_rejected_weight")
    elif "pref_loss" not in theirs:
        draft.default(path, "sigmoid", "pref_loss")
    elif loss in _LOSSES:
        draft.carry(theirs, "pref_loss", path, loss)
    else:
        draft.carry(theirs, "pref_loss", path, "sigmoid", f"there is no loss {loss} here", Fate.DECIDE)
    _number(draft, theirs, "pref_beta", "beta", 0.1)
    loss = draft.recipe["stages"][draft.stage]["loss"]
    weight = theirs.number("pref_ftx")
    if weight and loss != "kto":
        draft.carry(theirs, "pref_ftx", draft.of_stage("nll_weight"), float(weight))
    elif weight:
        theirs.decide("pref_ftx", "loss kto has no nll_weight here")
    if loss == "simpo":
        _number(draft, theirs, "simpo_gamma", "simpo_margin", 0.5)
    if loss == "sigmoid" and (smoothing := theirs.number("dpo_label_smoothing")) is not None:
        draft.carry(theirs, "dpo_label_smoothing", draft.of_stage("label_smoothing"), float(smoothing))


def _number(draft: Draft, theirs: Section, key: str, ours: str, default: float) -> None:
    path = draft.of_stage(ours)
    if (given := theirs.number(key)) is not None:
        draft.carry(theirs, key, path, float(given))
    else:
        draft.default(path, default, key)


def _checkpointing(draft: Draft, theirs: Section) -> None:
    key = "disable_gradient_checkpointing"
    if (off := theirs.flag(key)) is not None:
        draft.carry(theirs, key, draft.train("gradient_checkpointing"), not off)


def _packing(theirs: Section, stage: str) -> None:
    """Packs are the rows of their batch; ours counts examples."""
    for key in ("packing", "neat_packing"):
        loop.packed(theirs, key, "cutoff_len")
    if stage == "pt" and theirs.raw("packing") is None:
        theirs.account.decide(
            "train.batch_size: stage pt packs text into rows of cutoff_len tokens and cuts documents there; here a row "
            "of the data is a row, cut at model.max_length: split long documents into rows first"
        )
