"""torchtune's loop and preference losses."""

from __future__ import annotations

import re

from finetune.migrate import loop
from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft

_OPTIMIZERS = {
    "AdamW": "adamw", "AdamW8bit": "adamw_8bit", "PagedAdamW": "paged_adamw", "PagedAdamW8bit": "paged_adamw_8bit",
}  # fmt: skip
_LOSSES = {
    "DPOLoss": ("sigmoid", "beta", 0.1),
    "RSOLoss": ("hinge", "gamma", 0.1),
    "IPOLoss": ("ipo", "tau", 0.1),
    "SimPOLoss": ("simpo", "beta", 2.0),
}
"""Theirs → our loss, their name of beta, its default."""


def training(draft: Draft, theirs: Section, full: bool) -> None:
    """Length, batch, rate, optimiser; there is no held-out measuring to carry but by dataset_val."""
    _seed(draft, theirs)
    optimizer = theirs.section("optimizer")
    epochs = theirs.number("epochs")
    if epochs is None:
        theirs.account.problem(theirs.at("epochs"), "missing key: epochs", "the tool needs it too")
        return
    draft.carry(theirs, "epochs", draft.train("epochs"), float(epochs))
    if (steps := theirs.whole("max_steps_per_epoch")) is not None:
        total = max(1, round(steps * epochs))
        note = f"{steps} x {epochs:g} epochs; where an epoch has fewer steps theirs ends earlier"
        draft.carry(theirs, "max_steps_per_epoch", draft.train("max_steps"), total, note)
    loop.learning_rate(draft, optimizer, "lr", None, full=full)
    _batch(draft, theirs)
    _schedule(draft, theirs)
    _optimizer(draft, optimizer)
    path = draft.train("max_grad_norm")
    if (norm := theirs.number("clip_grad_norm")) is not None:
        draft.carry(theirs, "clip_grad_norm", path, float(norm))
    else:
        draft.default(path, None, "clip_grad_norm: no clipping")
    if (again := theirs.flag("enable_activation_checkpointing")) is not None:
        draft.carry(theirs, "enable_activation_checkpointing", draft.train("gradient_checkpointing"), again)
    _measuring(draft, theirs)


def _seed(draft: Draft, theirs: Section) -> None:
    if theirs.whole("seed") is not None:
        loop.seed(draft, theirs, "seed", 17)
    elif "seed" in theirs.values:
        theirs.tell("seed", Fate.CHANGED, "null draws one there; here it is fixed, 17")


def _batch(draft: Draft, theirs: Section) -> None:
    size = theirs.whole("batch_size")
    if size is None:
        theirs.account.problem(theirs.at("batch_size"), "missing key: batch_size", "the tool needs it too")
        return
    accumulated = theirs.whole("gradient_accumulation_steps") or 1
    loop.batch(draft, theirs, "batch_size", size, "gradient_accumulation_steps", accumulated)


def _schedule(draft: Draft, theirs: Section) -> None:
    section = theirs.section("lr_scheduler")
    name = (section.text("_component_") or "").rpartition(".")[2]
    path = draft.train("schedule")
    known = re.match(r"get_(cosine|linear|constant)_schedule", name)
    if not name:
        draft.put(path, "constant", "there is no lr_scheduler")
        draft.put(draft.train("warmup"), 0.0, "there is no lr_scheduler")
        return
    ours = known[1] if known else "cosine"
    draft.carry(section, "_component_", path, ours, "" if known else f"there is no {name} here; cosine is the nearest")
    if (steps := section.number("num_warmup_steps")) is not None:
        draft.carry(section, "num_warmup_steps", draft.train("warmup"), float(steps))
    else:
        draft.default(draft.train("warmup"), 0.0, "num_warmup_steps")
    if section.number("num_cycles") == 0.5:
        section.tell("num_cycles", Fate.CARRIED, "half a cosine is what there is")


def _optimizer(draft: Draft, section: Section) -> None:
    path = draft.train("optimizer")
    name = (section.text("_component_") or "").rpartition(".")[2]
    if name in _OPTIMIZERS:
        draft.carry(section, "_component_", path, _OPTIMIZERS[name])
    else:
        note = f"there is no {name or 'such optimizer'} here; a rate that suits it may not suit AdamW"
        draft.put(path, "adamw", note)
        section.decide("_component_", note)
    if (decay := section.number("weight_decay")) is not None:
        draft.carry(section, "weight_decay", draft.train("weight_decay"), float(decay))
    elif name in _OPTIMIZERS:
        draft.put(draft.train("weight_decay"), 0.01, f"default of {name}'s weight_decay")
    betas = section.raw("betas")
    if isinstance(betas, list) and len(betas) == 2 and all(isinstance(beta, float) for beta in betas):
        draft.carry(section, "betas", draft.train("betas"), betas)
    section.tell("fused", Fate.LEFT_OUT, "a kernel for speed, nothing to set")
    section.tell("eps", Fate.LEFT_OUT, "fixed here, 1e-8")


def _measuring(draft: Draft, theirs: Section) -> None:
    every = theirs.whole("run_val_every_n_steps")
    if every is not None and draft.has(draft.of_stage("held_out", "data")):
        draft.carry(theirs, "run_val_every_n_steps", draft.train("eval_every"), every)


def preference(draft: Draft, section: Section) -> None:
    """loss and beta of a DPO recipe, which is against the base as it is."""
    name = (section.text("_component_") or "").rpartition(".")[2]
    path = draft.of_stage("loss")
    loss, key, default = _LOSSES.get(name, ("sigmoid", "beta", 0.1))
    if name in _LOSSES:
        note = "summed over an answer there, its mean per token here" if loss == "ipo" else ""
        draft.carry(section, "_component_", path, loss, note)
    else:
        draft.carry(section, "_component_", path, loss, f"there is no {name} here; sigmoid is DPO's", Fate.DECIDE)
    beta = draft.of_stage("beta")
    if (given := section.number(key)) is not None:
        draft.carry(section, key, beta, float(given))
    else:
        draft.default(beta, default, f"{name or 'DPOLoss'} {key}")
    if loss == "simpo":
        gamma = section.number("gamma")
        draft.put(draft.of_stage("simpo_margin"), 0.5 if gamma is None else float(gamma), f"default of {name}'s gamma")
        draft.also(section, "gamma", draft.of_stage("simpo_margin"))
    if (smoothing := section.number("label_smoothing")) is not None and loss == "sigmoid":
        draft.carry(section, "label_smoothing", draft.of_stage("label_smoothing"), float(smoothing))
