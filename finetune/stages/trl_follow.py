"""Follow a training by TRL from outside: metrics, progress, signals, and what the run's manifest says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.engine.interrupt import StopRequest
from finetune.engine.loop import Progress
from finetune.engine.progress import Progress as Screen
from finetune.engine.progress import memory_gib
from finetune.engine.tracking import MetricsFile
from finetune.errors import DivergedError

_CLOCKS = ("epoch", "total_flos", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "num_tokens")
_OURS = ("loss", "grad_norm", "learning_rate")


@dataclass(frozen=True)
class Plan:
    """The training ahead. tokens, units: [S] of each row, in the order in which the rows are trained on."""

    steps: int
    batch_size: int
    rows_per_epoch: int
    tokens: NDArray[np.int64]
    units: NDArray[np.int64]

    def of_step(self, values: NDArray[np.int64], step: int) -> int:
        """Sum of a value over the rows of one step, counted from 1."""
        return int(values[(step - 1) * self.batch_size : step * self.batch_size].sum())


class Follow(TrainerCallback):
    """Writes metrics.jsonl as engine finetune does, under the same names where the same thing is meant.

    Names that are TRL's own (rewards/chosen, mean_token_accuracy …) are kept; `held_out_` stands for its `eval_`.
    """

    def __init__(
        self,
        plan: Plan,
        metrics: MetricsFile,
        screen: Screen,
        stop: StopRequest,
        device: torch.device,
        *,
        measures: bool,
    ) -> None:
        self.plan, self.metrics, self.screen = plan, metrics, screen
        self.stop, self.device, self.measures = stop, device, measures
        self.began = time.monotonic()
        self.seconds = self.rate = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.began = time.monotonic()
        return control

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> TrainerControl:
        self.rate = float(given["optimizer"].param_groups[0]["lr"])
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.seconds = time.monotonic() - self.began
        if state.global_step >= self.plan.steps:
            control.should_evaluate, control.should_save = self.measures, True
        elif self.stop.received:
            control.should_save = control.should_training_stop = True
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> TrainerControl:
        if logs and "loss" in logs:
            self._step(state.global_step, logs)
        elif logs and "eval_loss" in logs:
            self._held_out(state.global_step, logs)
        return control

    def _step(self, step: int, logs: Mapping[str, Any]) -> None:
        loss, tokens = float(logs["loss"]), self.plan.of_step(self.plan.tokens, step)
        line = {
            "step": step,
            "epoch": round(min(step * self.plan.batch_size, len(self.plan.tokens)) / self.plan.rows_per_epoch, 4),
            "loss": loss,
            **{name: float(value) for name, value in logs.items() if name not in (*_CLOCKS, *_OURS)},
            "learning_rate": self.rate,
            "grad_norm": None if logs.get("grad_norm") is None else float(logs["grad_norm"]),
            "trained": self.plan.of_step(self.plan.units, step),
            "tokens": tokens,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9), 1),
            "memory_gib": round(memory_gib(self.device), 3),
        }
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of step {step} is {loss}, and TRL has gone on from it: the run ends here. A lower "
                "learning_rate, or max_grad_norm, is the usual cure; engine finetune names the rows"
            )
        self.metrics.write(line)
        self.screen.update(line)

    def _held_out(self, step: int, logs: Mapping[str, Any]) -> None:
        others = {
            "held_out_" + name.removeprefix("eval_"): float(value)
            for name, value in logs.items()
            if name not in (*_CLOCKS, "eval_loss", "eval_num_tokens")
        }
        self.metrics.write({"step": step, "held_out_loss": float(logs["eval_loss"]), **others})
        self.screen.note(f"step {step}: held-out loss {logs['eval_loss']:.4f}")


def progress_of(lines: Sequence[Mapping[str, Any]]) -> Progress:
    """What engine finetune would know of a training, from its metrics.jsonl; so a resumed run counts all of it."""
    progress = Progress()
    for line in lines:
        if "loss" in line:
            progress.tokens += line["tokens"]
            progress.units += line["trained"]
            progress.seconds += line["seconds"]
            progress.first_loss = line["loss"] if progress.first_loss is None else progress.first_loss
            progress.last_loss = line["loss"]
            progress.last = _others(line, "")
        else:
            progress.held_out, progress.held_out_metrics = line["held_out_loss"], _others(line, "held_out_")
            if progress.first_held_out is None:
                progress.first_held_out, progress.first_held_out_metrics = progress.held_out, progress.held_out_metrics
            if progress.best_held_out is None or progress.held_out < progress.best_held_out:
                progress.best_held_out, progress.best_step = progress.held_out, line["step"]
    return progress


def _others(line: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """A line's metrics that are not the loop's own."""
    own = {"step", "epoch", "trained", "tokens", "seconds", "tokens_per_second", "memory_gib", "held_out_loss", *_OURS}
    return {name.removeprefix(prefix): value for name, value in line.items() if name not in own}
