"""The one training loop. Every stage trains here; what differs is the objective and where the batches come from.

One step: the step's rows are cut into micro-batches; each contributes loss_sum / units, where units counts what the
loss is a mean over in the whole step (trained tokens, pairs …), so the cut never changes the result; the gradient is
clipped; the optimiser moves. Everything that a later step depends on is in the checkpoint or is a function of
(seed, step), so a resumed run ends in the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from finetune.engine import checkpoint as saved
from finetune.engine.interrupt import stop_on_signals
from finetune.engine.optim import learning_rate, make_optimizer, warmup_steps
from finetune.engine.progress import MakeProgress, make_progress, memory_gib
from finetune.engine.tracking import MetricsFile, Tracking
from finetune.errors import CheckpointError, DivergedError, InputError, InterruptedRunError
from finetune.model.adapter import restore, state, trainable
from finetune.recipe.train_settings import TrainSettings


class Batch(Protocol):
    """One forward pass. units: what the loss is a mean over; tokens: how many the model sees; rows: their indices."""

    @property
    def units(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def rows(self) -> tuple[int, ...]: ...

    def to(self, device: torch.device) -> Self: ...


BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True)
class Loss:
    """total: the loss summed over the batch's units, a scalar with a gradient. metrics: more sums over units, detached;
    the loop logs their means over the step, and over the held-out batches."""

    total: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


Objective = Callable[[nn.Module, BatchT], Loss]
"""(model, batch) -> Loss."""


class Begun(NamedTuple):
    """metrics: of what was sampled, logged with the cycle's first step. stop: why training ends here, None = go on."""

    metrics: Mapping[str, float]
    stop: str | None = None


class Cycle(Protocol):
    """Work whose rows are made by the model itself, anew every `steps` optimiser steps (PPO's iterations).

    begin(step) makes them, from the weights and `step` alone. Checkpoints are taken between cycles only, after each
    unless the recipe says otherwise. state: what else later cycles depend on, as JSON; restore puts it back.
    """

    @property
    def steps(self) -> int: ...

    def begin(self, step: int) -> Begun: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Work(Generic[BatchT]):
    """What to train on. step_batches(step): the micro-batches of optimiser step `step`, a pure function of the step and
    of what the cycle has made. more: further terms of the loss, each with a forward and a backward pass of its own, so
    that their activations are never in memory together.

    unit: what a unit of the batches is, for people. held_out: batches to measure on, or empty.
    name_rows: row indices → where they came from, for messages. groups: of the trainable parameters, each with the
    factor of its learning rate and a gradient norm of its own to clip; None = all in one.
    """

    objective: Objective[BatchT]
    step_batches: Callable[[int], Sequence[BatchT]]
    total_steps: int
    steps_per_epoch: int
    held_out: Sequence[BatchT]
    name_rows: Callable[[Sequence[int]], str]
    unit: str = "trained tokens"
    more: Sequence[Objective[BatchT]] = ()
    cycle: Cycle | None = None
    groups: Sequence[tuple[list[nn.Parameter], float]] | None = None


@dataclass
class Progress:
    """The part of the loop's state that is not tensors. Saved with every checkpoint."""

    tokens: int = 0
    units: int = 0
    seconds: float = 0.0
    first_held_out: float | None = None
    held_out: float | None = None
    best_held_out: float | None = None
    best_step: int | None = None
    measurements_since_best: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    last: dict[str, float] = field(default_factory=dict)
    held_out_metrics: dict[str, float] = field(default_factory=dict)
    first_held_out_metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Trained:
    """What the loop leaves: the model holds the final weights. steps: fewer than planned after an early stop."""

    steps: int
    progress: Progress
    stopped_early: bool
    resumed_from: int
    unit: str
    warnings: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        return {"steps": self.steps, "stopped_early": self.stopped_early, "unit": self.unit, **asdict(self.progress)}


def make_accelerator(device: torch.device) -> Accelerator:
    """accelerate for one process on one device. Raises InputError under a launcher of several processes.

    Precision is not its business here: its choice would be the process's for good, and stages may differ.
    """
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    if accelerator.num_processes != 1:
        raise InputError(
            f"started as {accelerator.num_processes} processes ({accelerator.distributed_type}): this version trains "
            "in one process on one device; start it with plain `finetune`, without torchrun or accelerate launch"
        )
    return accelerator


def autocast(device: torch.device, compute: torch.dtype) -> torch.autocast:
    """Matrix products in `compute`: bf16 by autocast, so that LoRA's float32 weights stay float32; else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute == torch.bfloat16)


def train(
    model: nn.Module,
    work: Work[BatchT],
    settings: TrainSettings,
    *,
    peak_rate: float,
    accelerator: Accelerator,
    compute: torch.dtype,
    folder: Path,
    title: str,
    tracking: Tracking | None = None,
    make_screen: MakeProgress = make_progress,
) -> Trained:
    """Train the model's trainable parameters in place, resuming from `folder/checkpoints` where there is one.

    Raises DivergedError on a loss or gradient that is not finite, InterruptedRunError after Ctrl-C or SIGTERM (a
    checkpoint has been written), and OSError when the disk is full.
    """
    device = accelerator.device
    total, warmup = work.total_steps, warmup_steps(settings.warmup, work.total_steps)
    # At most ten times, and so seldom that forward passes on held-out rows stay below a third of the training's cost.
    held_out_steps = sum(len(batch.rows) for batch in work.held_out) / settings.batch_size
    eval_every = settings.eval_every or math.ceil(max(total / 10, held_out_steps, 1))
    save_every = settings.checkpoint_every or max(1, math.ceil(total / 10))
    if work.cycle is not None:  # whole cycles, and by default each: sampling costs more than a checkpoint
        save_every = math.ceil((settings.checkpoint_every or 1) / work.cycle.steps) * work.cycle.steps
    groups = work.groups or [(list(trainable(model).values()), 1.0)]
    optimizer = make_optimizer([{"params": parameters} for parameters, _ in groups], settings)
    checkpoints = folder / "checkpoints"
    metrics_file = MetricsFile(folder / "metrics.jsonl", tracking)

    found, warnings = saved.newest_checkpoint(checkpoints)
    progress, step = Progress(), 0
    best: dict[str, Tensor] | None = None
    stopped_early = False
    if found is not None:
        try:
            restore(model, found.weights)
            optimizer.load_state_dict(found.optimizer)
            saved.restore_random_state(found.rng)
            progress, step, best = Progress(**found.state["progress"]), found.step, found.best
            stopped_early = found.state["stopped_early"]
            if work.cycle is not None:
                work.cycle.restore(found.state["cycle"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint of step {found.step} in {checkpoints} does not fit: {error}. Was it written by "
                f"another version of finetune or of a library? Remove {folder.parent} to start this stage again"
            ) from error
    metrics_file.rewind(step if found is not None else -1)
    resumed_from = step

    def save() -> None:
        loop_state: dict[str, Any] = {"progress": asdict(progress), "stopped_early": stopped_early}
        if work.cycle is not None:
            loop_state["cycle"] = work.cycle.state()
        written = saved.Checkpoint(step, state(model), optimizer.state_dict(), saved.random_state(), loop_state, best)
        saved.write_checkpoint(checkpoints, written, keep=settings.keep_checkpoints)

    def measure() -> bool:
        """Measure held-out loss; keep the best weights when the recipe stops early. True: time to stop."""
        nonlocal best
        if not work.held_out:
            return False
        means = held_out_means(model, work, device, compute)
        progress.held_out, progress.held_out_metrics = means.pop("loss"), means
        if not math.isfinite(progress.held_out):
            cure = (
                "a lower learning_rate is the usual cure"
                if step
                else "the base, or the adapter to start from, is damaged"
            )
            raise DivergedError(f"the held-out loss after step {step} is {progress.held_out}: {cure}")
        if progress.first_held_out is None:
            progress.first_held_out, progress.first_held_out_metrics = progress.held_out, means
        metrics_file.write(
            {"step": step, "held_out_loss": progress.held_out, **{f"held_out_{k}": v for k, v in means.items()}}
        )
        others = "".join(f", {name} {value:.4f}" for name, value in means.items())
        screen.note(f"step {step}: held-out loss {progress.held_out:.4f}{others}")
        if progress.best_held_out is None or progress.held_out < progress.best_held_out:
            progress.best_held_out, progress.best_step = progress.held_out, step
            progress.measurements_since_best = 0
            if settings.early_stop is not None:
                best = state(model)
        else:
            progress.measurements_since_best += 1
        return settings.early_stop is not None and progress.measurements_since_best >= settings.early_stop

    screen = make_screen(title, total, step)
    with closing(screen), stop_on_signals() as stop:
        for warning in warnings:
            screen.note(warning)
        if resumed_from:
            screen.note(f"resumed from the checkpoint of step {resumed_from}")
        else:
            measure()
        model.train()
        while step < total and not stopped_early:
            begun: Mapping[str, float] = {}
            if work.cycle is not None and step % work.cycle.steps == 0:
                begun, reason = work.cycle.begin(step)
                if reason is not None:
                    warnings.append(f"stopped before step {step + 1}: {reason}")
                    screen.note(warnings[-1])
                    stopped_early = True
                    if best is not None:
                        restore(model, best)
                    break  # no checkpoint: killed from here on, the run begins this cycle again and stops again
                best = state(model)  # of the last cycle that began well
            began = time.monotonic()
            rate = learning_rate(step, peak=peak_rate, total=total, warmup=warmup, schedule=settings.schedule)
            for group, (_, factor) in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rate * factor
            batches = work.step_batches(step)
            means, norm = _one_step(model, work, batches, groups, optimizer, settings, accelerator, compute, step)
            loss = means.pop("loss")
            step += 1
            seconds = time.monotonic() - began
            tokens, units = sum(b.tokens for b in batches), sum(b.units for b in batches)
            progress.tokens += tokens
            progress.units += units
            progress.seconds += seconds
            progress.first_loss = loss if progress.first_loss is None else progress.first_loss
            progress.last_loss, progress.last = loss, means
            metrics = {
                "step": step,
                "epoch": round(step / work.steps_per_epoch, 4),
                "loss": loss,
                **means,
                **begun,
                "learning_rate": rate,
                "grad_norm": norm,
                "trained": units,
                "tokens": tokens,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(tokens / seconds, 1),
                "memory_gib": round(memory_gib(device), 3),
            }
            metrics_file.write(metrics)
            screen.update(metrics)
            if step % eval_every == 0 or step == total:
                stopped_early = measure()
            between = work.cycle is None or step % work.cycle.steps == 0
            if between and (step % save_every == 0 or step == total or stopped_early or stop.received):
                save()
            if stop.received and step < total and not stopped_early:
                saved_at = "a checkpoint is saved" if between else "what came after the last checkpoint is done again"
                raise InterruptedRunError(
                    f"stopped by {stop.received} after step {step} of {total}; {saved_at}. Run the same "
                    "command again to go on from there"
                )
        if best is not None and settings.early_stop is not None:
            restore(model, best)
            progress.held_out = progress.best_held_out  # of the weights that are kept
    return Trained(step, progress, stopped_early, resumed_from, work.unit, warnings)


def _one_step(
    model: nn.Module,
    work: Work[BatchT],
    batches: Sequence[BatchT],
    groups: Sequence[tuple[list[nn.Parameter], float]],
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    accelerator: Accelerator,
    compute: torch.dtype,
    step: int,
) -> tuple[dict[str, float], float]:
    """Gradient of the step's mean loss, checked and clipped, then the update.

    Returns (means over the step's units: "loss" and the objective's own metrics; gradient norm).
    """
    units = sum(batch.units for batch in batches)
    if units == 0:
        rows = work.name_rows([row for batch in batches for row in batch.rows])
        raise DivergedError(f"step {step + 1} has no trained token: its loss is undefined. Rows: {rows}")
    sums: dict[str, float] = {"loss": 0.0}
    for objective in (work.objective, *work.more):  # outside: an objective may switch the adapter, which takes time
        for batch in batches:
            with autocast(accelerator.device, compute):
                loss = objective(model, batch.to(accelerator.device))
            accelerator.backward(loss.total / units)
            _add(sums, loss)
            if not math.isfinite(sums["loss"]):
                rows = work.name_rows(batch.rows)
                raise DivergedError(
                    f"the loss of step {step + 1} is {loss.total.item()}: nothing was updated. Rows: {rows}. "
                    "Look at them with `finetune inspect`; a lower learning_rate, or max_grad_norm, is the usual cure"
                )
    limit = math.inf if settings.max_grad_norm is None else settings.max_grad_norm
    norm = math.hypot(*(torch.nn.utils.clip_grad_norm_(group, limit).item() for group, _ in groups))
    if not math.isfinite(norm):
        rows = work.name_rows([row for batch in batches for row in batch.rows])
        raise DivergedError(f"the gradient of step {step + 1} is {norm}: nothing was updated. Rows: {rows}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {name: value / units for name, value in sums.items()}, norm


def _add(sums: dict[str, float], loss: Loss) -> None:
    sums["loss"] += loss.total.item()
    for name, value in loss.metrics.items():
        sums[name] = sums.get(name, 0.0) + value.item()


@torch.no_grad()
def held_out_means(
    model: nn.Module, work: Work[BatchT], device: torch.device, compute: torch.dtype
) -> dict[str, float]:
    """Means over all units of the held-out batches: "loss" and the objective's metrics. The model's mode and the random
    state are left as they were."""
    was_training = model.training
    model.eval()
    sums: dict[str, float] = {"loss": 0.0}
    units = 0
    for batch in work.held_out:
        with autocast(device, compute):
            _add(sums, work.objective(model, batch.to(device)))
        units += batch.units
    model.train(was_training)
    return {name: value / units for name, value in sums.items()}
