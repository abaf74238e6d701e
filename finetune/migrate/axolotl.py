"""Axolotl's YAML: one flat file, a stage by `rl` and `reward_model`, LoRA by `adapter`."""

from __future__ import annotations

from finetune.migrate import loop, model, rows
from finetune.migrate.account import Fate, Section
from finetune.migrate.axolotl_data import add_dataset, template_of
from finetune.migrate.draft import Draft

_NAMES = loop.Names("micro_batch_size", "num_epochs", "lr_scheduler", "optimizer")
_DEFAULTS = loop.Defaults(micro=1, epochs=1.0, schedule="cosine", warmup=0.03, learning_rate=None)
_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo", "kto": "kto"}


def fill(draft: Draft, theirs: Section) -> None:
    """Write the recipe of their file into the draft, and tell what became of each key."""
    _begin(draft, theirs)
    model.base(draft, theirs, "base_model")
    model.revision(draft, theirs, "revision_of_model")
    full = _adapter(draft, theirs)
    length = theirs.whole("sequence_len")
    if length is None:
        draft.default(("model", "max_length"), 512, "sequence_len")
    else:
        draft.carry(theirs, "sequence_len", ("model", "max_length"), length)
    model.system_prompt(draft, theirs, "default_system_message")
    model.precision(draft, theirs)
    _track(draft, theirs)
    held_out = _data(draft, theirs)
    _loss(draft, theirs)
    loop.training(draft, theirs, _NAMES, _DEFAULTS, full=full, held_out=held_out)
    _batch_in_all(draft, theirs)
    loop.packed(theirs, "sample_packing", "sequence_len")
    if theirs.text("rl") == "kto":
        loop.pairs_at_once(draft)


def _begin(draft: Draft, theirs: Section) -> None:
    rl = theirs.text("rl")
    if rl is not None:
        if rl not in _LOSSES:
            python = "its reward functions are Python code; write a stage of kind grpo by hand: docs/trl.md"
            hint = python if rl in ("grpo", "gdpo") else f"known are {', '.join(_LOSSES)}"
            theirs.account.problem(theirs.at("rl"), f"rl: {rl} is not imported", hint)
        draft.begin("dpo", f"rl: {rl}")
        theirs.tell("rl", Fate.CARRIED, "→ kind: dpo")
    elif theirs.flag("reward_model"):
        draft.begin("reward", "reward_model: true")
        theirs.tell("reward_model", Fate.CARRIED, "→ kind: reward")
        if (weight := theirs.number("center_rewards_coefficient")) is not None:
            draft.carry(theirs, "center_rewards_coefficient", draft.of_stage("centring"), float(weight))
    else:
        draft.begin("sft", "no rl and no reward_model: supervised fine-tuning")
    if theirs.flag("process_reward_model"):
        problem = "process reward models are not trained here"
        theirs.account.problem(theirs.at("process_reward_model"), problem, "kind: reward scores whole answers")


def _adapter(draft: Draft, theirs: Section) -> bool:
    """Returns whether they train all weights."""
    adapter = theirs.text("adapter")
    model.held_in(draft, theirs, "load_in_4bit", "load_in_8bit", "bf16", "neither load_in_4bit nor load_in_8bit")
    if adapter is None:
        draft.account.tell(theirs.at("adapter"), None, Fate.EMPTY)
        model.full_training(draft, theirs, "adapter", "Axolotl without `adapter`")
        return True
    if adapter not in ("lora", "qlora"):
        theirs.decide("adapter", f"{adapter} is not here: LoRA is trained in its place")
    else:
        theirs.tell("adapter", Fate.CARRIED, "→ adapter; every recipe trains LoRA, and model.load_in says on what")
    model.number_of_adapter(draft, theirs, "lora_r", "rank", 8)
    model.number_of_adapter(draft, theirs, "lora_alpha", "alpha", 8.0)
    if draft.stage == "sft":
        model.number_of_adapter(draft, theirs, "lora_dropout", "dropout", 0.0)
    else:
        model.dropout_off(draft, theirs, "TRL's trainer, which Axolotl uses here,")
    _targets(draft, theirs)
    for key, ours in (("peft_use_rslora", "rslora"), ("peft_use_dora", "dora")):
        if (given := theirs.flag(key)) is not None:
            draft.carry(theirs, key, ("adapter", ours), given)
    if saved := theirs.words("lora_modules_to_save"):
        draft.carry(theirs, "lora_modules_to_save", ("adapter", "modules_to_save"), saved)
    _init(draft, theirs)
    if folder := theirs.text("lora_model_dir"):
        model.start_from(draft, theirs, "lora_model_dir", folder)
    return False


def _targets(draft: Draft, theirs: Section) -> None:
    if theirs.flag("lora_target_linear"):
        path = ("adapter", "targets")
        draft.carry(theirs, "lora_target_linear", path, "all-linear")
        if named := theirs.words("lora_target_modules"):
            note = "all linear layers contain it" if set(named) <= set(model.LINEAR) else ""
            theirs.tell("lora_target_modules", Fate.CARRIED if note else Fate.DECIDE, note or "more than linear layers")
        return
    if names := theirs.words("lora_target_modules"):
        model.targets(draft, theirs, "lora_target_modules", names)
    else:
        draft.put(("adapter", "targets"), ["q_proj", "v_proj"], "default of peft for a LLaMA: no targets were given")
    theirs.tell("lora_target_linear", Fate.EMPTY)


def _init(draft: Draft, theirs: Section) -> None:
    key = "peft_init_lora_weights"
    given = theirs.raw(key)
    if isinstance(given, str) and given.lower() != "true":
        model.initial(draft, theirs, key, given)
    elif given is not None:
        theirs.tell(key, Fate.CARRIED, "→ adapter.init default")


def _track(draft: Draft, theirs: Section) -> None:
    if theirs.flag("use_tensorboard"):
        draft.carry(theirs, "use_tensorboard", ("track", "tensorboard"), True)
    if theirs.text("wandb_mode") == "disabled" or not (project := theirs.text("wandb_project")):
        return
    draft.carry(theirs, "wandb_project", ("track", "wandb", "project"), project)
    if entity := theirs.text("wandb_entity"):
        draft.carry(theirs, "wandb_entity", ("track", "wandb", "entity"), entity)
    if (mode := theirs.text("wandb_mode")) in ("online", "offline"):
        draft.carry(theirs, "wandb_mode", ("track", "wandb", "mode"), mode)


def _data(draft: Draft, theirs: Section) -> bool:
    """data, held_out and what goes with them; returns whether there are held-out rows."""
    kind = "kto" if theirs.text("rl") == "kto" else str(draft.recipe["stages"][draft.stage]["kind"])
    template_of(draft, theirs, kind)
    for key in ("datasets", "pretraining_dataset"):
        for dataset in theirs.sections(key):
            add_dataset(draft, dataset, kind, ("data",), plain=key == "pretraining_dataset")
    if not theirs.account.problems:
        rows.needs_rows(draft, theirs, "datasets")
    tests = theirs.sections("test_datasets")
    for dataset in tests:
        add_dataset(draft, dataset, kind, ("held_out", "data"))
    held_out = bool(tests) or rows.held_out_share(draft, theirs, "val_set_size")
    if tests:
        theirs.tell("val_set_size", Fate.EMPTY, "test_datasets are measured on")
    if theirs.flag("dataset_exact_deduplication"):
        draft.carry(theirs, "dataset_exact_deduplication", draft.of_stage("duplicates"), "drop")
    strategy = theirs.text("excess_length_strategy")
    policy = {"drop": "drop", "truncate": "truncate", "raise": "error"}.get(strategy or "drop", "")
    if strategy is not None and policy and (kind == "sft" or policy != "truncate"):
        draft.carry(theirs, "excess_length_strategy", draft.of_stage("too_long"), policy)
    elif strategy is not None:
        theirs.decide("excess_length_strategy", "comparisons are not cut here: too_long is drop or error")
    if kind == "sft" and theirs.flag("train_on_inputs"):
        draft.carry(theirs, "train_on_inputs", draft.of_stage("loss_on"), "all")
    elif kind == "sft":
        theirs.tell("train_on_inputs", Fate.CARRIED, "→ loss_on: answers")
    else:
        theirs.tell("train_on_inputs", Fate.LEFT_OUT, "answers are what is compared")
    return held_out


def _loss(draft: Draft, theirs: Section) -> None:
    rl = theirs.text("rl")
    if rl not in _LOSSES:
        return
    loss = _LOSSES[rl]
    draft.put(draft.of_stage("loss"), loss, f"rl: {rl}")
    if loss == "sigmoid":
        _dpo_loss_type(draft, theirs)
    beta = draft.of_stage("beta")
    trl = theirs.section("trl")
    places = [(trl, "beta"), (theirs, "rl_beta"), (theirs, "dpo_beta"), (theirs, "orpo_alpha")]
    given = [(section, key, section.number(key)) for section, key in places if key in section]
    for section, key, number in given:
        if number is not None and not draft.has(beta):
            draft.carry(section, key, beta, float(number))
        else:
            section.tell(key, Fate.LEFT_OUT, "another key of beta is given too, and counts")
    if not given:
        draft.default(beta, 0.1, "rl_beta")
    if loss == "kto":
        loop.kto_weights(draft, theirs, "kto_desirable_weight", "kto_undesirable_weight")
    if loss == "simpo":
        gamma = theirs.number("simpo_gamma")
        path = draft.of_stage("simpo_margin")
        if gamma is None:
            draft.default(path, 0.5, "simpo_gamma")
        else:
            draft.carry(theirs, "simpo_gamma", path, float(gamma))
        _nll(draft, theirs, "cpo_alpha", 1.0)
    elif loss != "kto":
        _nll(draft, theirs, "rpo_alpha", 0.0)
    smoothed = draft.recipe["stages"][draft.stage]["loss"] in ("sigmoid", "robust")
    if smoothed and (smoothing := theirs.number("dpo_label_smoothing")) is not None:
        draft.carry(theirs, "dpo_label_smoothing", draft.of_stage("label_smoothing"), float(smoothing))


def _dpo_loss_type(draft: Draft, theirs: Section) -> None:
    kinds = theirs.words("dpo_loss_type")
    known = ("sigmoid", "hinge", "ipo", "robust", "sigmoid_norm")
    if len(kinds) == 1 and kinds[0] in known:
        draft.carry(theirs, "dpo_loss_type", draft.of_stage("loss"), kinds[0])
    elif kinds:
        theirs.decide("dpo_loss_type", f"of these losses a recipe has one: {', '.join(known)}")


def _nll(draft: Draft, theirs: Section, key: str, default: float) -> None:
    path = draft.of_stage("nll_weight")
    if (weight := theirs.number(key)) is not None:
        draft.carry(theirs, key, path, float(weight))
    elif default:
        draft.default(path, default, key)


def _batch_in_all(draft: Draft, theirs: Section) -> None:
    """batch_size is Axolotl's other way to say how many are added up."""
    if (size := theirs.whole("batch_size")) is not None:
        micro = draft.recipe["stages"][draft.stage]["train"]["micro_batch_size"]
        draft.carry(theirs, "batch_size", draft.train("batch_size"), max(size, micro), "of all devices together")
