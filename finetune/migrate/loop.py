"""The training loop, under transformers' names and Axolotl's: length, batches, learning rate, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft

_OPTIMIZERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_hf": "adamw",
    "adamw_apex_fused": "adamw",
    "adamw": "adamw",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw",
    "paged_adamw_32bit": "paged_adamw",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
_NEAREST = {"polynomial": "linear", "inverse_sqrt": "linear", "warmup_stable_decay": "constant"}
DEVICES = "of one device: on N devices theirs was N times that"


@dataclass(frozen=True)
class Names:
    """How a tool calls what all have."""

    micro: str = "per_device_train_batch_size"
    epochs: str = "num_train_epochs"
    schedule: str = "lr_scheduler_type"
    optimizer: str = "optim"


@dataclass(frozen=True)
class Defaults:
    """What a tool does where a key is absent. learning_rate None = the tool needs it to be given."""

    micro: int
    epochs: float
    schedule: str
    warmup: float
    learning_rate: float | None
    seed: int = 42
    checkpointing: bool = False


def training(draft: Draft, section: Section, names: Names, defaults: Defaults, *, full: bool, held_out: bool) -> None:
    """train and seed. full: they train all weights, so that their learning rate does not fit. held_out: there are
    rows to measure on."""
    seed(draft, section, "seed", defaults.seed)
    _length(draft, section, names, defaults)
    learning_rate(draft, section, "learning_rate", defaults.learning_rate, full=full)
    accumulated = section.whole("gradient_accumulation_steps") or 1
    micro = section.whole(names.micro) or defaults.micro
    batch(draft, section, names.micro, micro, "gradient_accumulation_steps", accumulated)
    schedule(draft, section, names.schedule, defaults.schedule)
    _warmup(draft, section, defaults)
    optimizer(draft, section, names.optimizer)
    _adam(draft, section)
    _checkpointing(draft, section, defaults)
    _measuring(draft, section, held_out)


def seed(draft: Draft, section: Section, key: str, default: int) -> None:
    if (given := section.whole(key)) is not None:
        draft.carry(section, key, ("seed",), given)
    else:
        draft.default(("seed",), default, key)


def _length(draft: Draft, section: Section, names: Names, defaults: Defaults) -> None:
    steps = section.whole("max_steps")
    if steps is not None and steps > 0:
        draft.carry(section, "max_steps", draft.train("max_steps"), steps)
    elif steps is not None:
        section.tell("max_steps", Fate.EMPTY)
    epochs = section.number(names.epochs)
    if epochs is not None:
        note = "not used: max_steps is given" if draft.has(draft.train("max_steps")) else ""
        draft.carry(section, names.epochs, draft.train("epochs"), float(epochs), note, Fate.CARRIED)
    else:
        draft.default(draft.train("epochs"), defaults.epochs, names.epochs)


def learning_rate(draft: Draft, section: Section, key: str, default: float | None, *, full: bool = False) -> None:
    path = draft.train("learning_rate")
    given = section.number(key)
    if given is None and default is None:
        section.account.problem(section.at(key), f"missing key: {key}", "the tool needs it too")
    elif full:
        note = "a rate for all weights, about a tenth of what LoRA needs; auto follows the base's width"
        if given is None:
            draft.put(path, "auto", f"in place of {default:g}, default of {draft.account.tool}'s {key}: {note}")
        else:
            draft.carry(section, key, path, "auto", note)
    elif given is None:
        draft.default(path, default, key)
    else:
        draft.carry(section, key, path, float(given))


def batch(draft: Draft, section: Section, micro_key: str, micro: int, steps_key: str, steps: int) -> None:
    """Examples in one step = those of a forward pass times the passes that are added up."""
    path = draft.train("batch_size")
    draft.put(path, micro * steps, f"{micro} at once x {steps} added up, {DEVICES}")
    small = draft.train("micro_batch_size")
    if micro_key in section:
        draft.carry(section, micro_key, small, micro)
    else:
        draft.default(small, micro, micro_key)
    section.tell(
        steps_key, Fate.CHANGED, f"→ {'.'.join(map(str, path))}: {micro} x {steps} = {micro * steps}, {DEVICES}"
    )
    if steps_key in section:
        draft.comments[path] = f"{micro_key} {micro} x {steps_key} {steps}, {DEVICES}"


def packed(section: Section, key: str, room: str) -> None:
    """Packs are the rows of their batch; ours counts examples. room: how they call what a pack holds."""
    if section.flag(key):
        section.decide(
            key,
            f"rows are laid end to end here too, but train.batch_size counts rows, not packs of {room} tokens: "
            "multiply it by the rows that fit into one (`finetune inspect` shows the lengths)",
        )


def pairs_at_once(draft: Draft) -> None:
    """loss kto estimates its baseline within a micro-batch, which needs two answers."""
    train = draft.recipe["stages"][draft.stage]["train"]
    if train["micro_batch_size"] < 2:
        train["micro_batch_size"] = 2
        train["batch_size"] = max(2, train["batch_size"])
        path = draft.train("micro_batch_size")
        draft.comments[path] += "; 2 here: loss kto estimates its baseline within a micro-batch"


def kto_weights(draft: Draft, section: Section, desirable: str, undesirable: str) -> None:
    """Their keys of both weights; absent is 1 with all of them. 0, which ours cannot be, is told."""
    path = draft.of_stage("kto_weights")
    given = {key: section.number(key) for key in (desirable, undesirable)}
    weights = [1.0 if weight is None or weight <= 0 else float(weight) for weight in given.values()]
    draft.put(path, weights, "desirable, undesirable")
    for key, weight in given.items():
        if weight is not None and weight <= 0:
            section.decide(key, f"{weight:g} is 1 here, for weights are above 0: leave rows of that kind out instead")
        else:
            draft.also(section, key, path)


def schedule(draft: Draft, section: Section, key: str, default: str) -> None:
    path = draft.train("schedule")
    given = section.text(key)
    if given is None:
        draft.default(path, default, key)
    elif given in _SCHEDULES:
        draft.carry(section, key, path, _SCHEDULES[given])
    else:
        ours = _NEAREST.get(given, "cosine")
        draft.carry(section, key, path, ours, f"there is no schedule {given} here; {ours} is the nearest")


def _warmup(draft: Draft, section: Section, defaults: Defaults) -> None:
    """Steps or a share of them: ours is one key, below 1 a share. In transformers constant has no warm-up at all."""
    path = draft.train("warmup")
    steps, share = section.number("warmup_steps"), section.number("warmup_ratio")
    if section.text("lr_scheduler_type" if "lr_scheduler_type" in section else "lr_scheduler") == "constant":
        draft.put(path, 0.0, "schedule constant has no warm-up in transformers")
        draft.also(section, "warmup_steps", path, "transformers' schedule constant has no warm-up")
        draft.also(section, "warmup_ratio", path, "transformers' schedule constant has no warm-up")
    elif steps:
        draft.carry(section, "warmup_steps", path, float(steps))
        section.tell("warmup_ratio", Fate.EMPTY, "warmup_steps is given and counts")
    elif share is not None:
        if share >= 1:
            section.account.problem(section.at("warmup_ratio"), f"expected a share below 1; found {share:g}")
        draft.carry(section, "warmup_ratio", path, float(share))
        section.tell("warmup_steps", Fate.EMPTY, "0: warmup_ratio counts")
    elif steps is not None:
        draft.carry(section, "warmup_steps", path, 0.0)
    else:
        draft.default(path, defaults.warmup, "warmup_ratio")


def optimizer(draft: Draft, section: Section, key: str) -> None:
    path = draft.train("optimizer")
    given = section.text(key)
    if given is None:
        draft.default(path, "adamw", key)
    elif given in _OPTIMIZERS:
        draft.carry(section, key, path, _OPTIMIZERS[given])
    else:
        note = f"there is no {given} here; a rate that suits it may not suit AdamW: see train.learning_rate"
        draft.carry(section, key, path, "adamw", note, Fate.DECIDE)


def _adam(draft: Draft, section: Section) -> None:
    first, second = section.number("adam_beta1"), section.number("adam_beta2")
    if first is not None or second is not None:
        path = draft.train("betas")
        draft.put(path, [float(first if first is not None else 0.9), float(second if second is not None else 0.999)])
        draft.also(section, "adam_beta1", path)
        draft.also(section, "adam_beta2", path)
    if "adam_epsilon" in section:
        epsilon = section.number("adam_epsilon")
        same = epsilon is not None and abs(epsilon - 1e-8) < 1e-12
        section.tell("adam_epsilon", Fate.LEFT_OUT, "it is 1e-8 here too" if same else "fixed here, 1e-8")
    if (decay := section.number("weight_decay")) is not None:
        draft.carry(section, "weight_decay", draft.train("weight_decay"), float(decay))
    if (norm := section.number("max_grad_norm")) is not None:
        draft.carry(section, "max_grad_norm", draft.train("max_grad_norm"), float(norm) if norm > 0 else None)


def _checkpointing(draft: Draft, section: Section, defaults: Defaults) -> None:
    key, path = "gradient_checkpointing", draft.train("gradient_checkpointing")
    if isinstance(section.raw(key), str) and section.raw(key) in ("unsloth", "offload", "offload_disk"):
        draft.carry(section, key, path, True, "recomputed, not moved off the GPU")
    elif (given := section.flag(key)) is not None:
        draft.carry(section, key, path, given)
    elif defaults.checkpointing:
        draft.default(path, True, key)


def _measuring(draft: Draft, section: Section, held_out: bool) -> None:
    every = section.number("eval_steps")
    if every is not None and every >= 1 and held_out:
        draft.carry(section, "eval_steps", draft.train("eval_every"), int(every))
    elif every is not None:
        why = "up to ten times in the run" if held_out else "there are no held-out rows to measure on"
        section.tell("eval_steps", Fate.LEFT_OUT, f"train.eval_every counts whole steps; as it is: {why}")
    saved = section.number("save_steps")
    if saved is not None and saved >= 1:
        note = "checkpoints serve to go on after a stop, and are removed when the run is finished"
        draft.carry(section, "save_steps", draft.train("checkpoint_every"), int(saved), note)
    elif saved is not None:
        section.tell("save_steps", Fate.LEFT_OUT, "train.checkpoint_every counts whole steps; ten times as it is")
    if (kept := section.whole("save_total_limit")) is not None and kept >= 1:
        draft.carry(section, "save_total_limit", draft.train("keep_checkpoints"), kept)
    for key in ("early_stopping_patience", "early_stopping_steps"):
        if (patience := section.whole(key)) and held_out:
            draft.carry(section, key, draft.train("early_stop"), patience)
        elif key in section:
            section.tell(key, Fate.LEFT_OUT, "train.early_stop needs held-out rows to measure on")
