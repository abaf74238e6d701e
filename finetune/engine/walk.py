"""How far a walk over a recipe's stages is, and how long it will take: what a terminal's tree and a notebook show.

Every figure of time is measured: the running stage's from its own steps, a stage's that is to do from a finished one of
the same work (plan/pace.py). Where neither is there, the time is not known, and is said to be so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune.engine.progress import duration, seconds_left
from finetune.plan.manifest import read_manifest
from finetune.plan.pace import Pace
from finetune.plan.plan import Plan, PlannedStage

State = Literal["done before", "done", "running", "to do", "stopped"]
_NAMES = 3
"""Stages whose time is not known that are named."""


@dataclass
class WalkedStage:
    """One stage of the walk. done: steps of `total`, None = not begun; resumed: of those, in an earlier session.

    seconds: what it took. metrics: the newest of each name.
    """

    stage: PlannedStage
    state: State
    began: float = 0.0
    seconds: float | None = None
    total: int | None = None
    done: int = 0
    resumed: int = 0
    first_step: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)

    def left(self, now: float, pace: Pace) -> float | None:
        """Seconds until the stage is done, None where nothing says so."""
        if self.state in ("done before", "done"):
            return 0.0
        if self.state == "running" and self.total is not None:
            measured = seconds_left(now - self.first_step, self.done - self.resumed, self.total - self.done)
            if measured is not None:
                return measured
        expected = pace.expected(self.stage.settings)
        if expected is None or self.state != "running":
            return expected
        return max(expected - (now - self.began), 0.0)


class Walk:
    """The stages of a walk as they stand. clock: seconds, as of time.monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.name = ""
        self.stages: dict[str, WalkedStage] = {}
        self.running: WalkedStage | None = None
        self.pace = Pace()
        self.began = clock()

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        self.name, self.pace, self.began = plan.recipe.name, Pace.of(plan), self.clock()
        self.stages = {
            stage.name: WalkedStage(stage, "done before" if stage.state == "done" else "to do") for stage in stages
        }

    def begin(self, stage: PlannedStage) -> WalkedStage:
        walked = self.running = self.stages[stage.name]
        walked.began = self.clock()
        if walked.state != "done before":
            walked.state = "running"
        return walked

    def steps(self, title: str, total: int, done: int) -> WalkedStage:
        """The running stage begins a work of `total` steps. done: in an earlier session."""
        assert self.running is not None, f"{title} works before it began"
        walked = self.running
        walked.total, walked.done, walked.resumed, walked.first_step, walked.metrics = (
            total, done, done, self.clock(), {},
        )  # fmt: skip
        return walked

    def measured(self, walked: WalkedStage, metrics: Mapping[str, Any]) -> None:
        """A step was done. PPO knows reward and KL of whole iterations: they stand until the next."""
        walked.done, walked.metrics = int(metrics["step"]), {**walked.metrics, **metrics}

    def end(self, stage: PlannedStage) -> WalkedStage:
        walked = self.stages[stage.name]
        if walked.state != "done before":
            walked.state, walked.seconds = "done", self.clock() - walked.began
        if (manifest := read_manifest(stage.folder)) is not None:
            self.pace.learn(stage.settings, manifest)
        return walked

    def stop(self) -> None:
        """The walk has ended; a stage that still runs was stopped."""
        for walked in self.stages.values():
            if walked.state == "running":
                walked.state = "stopped"

    def left(self, walked: WalkedStage) -> float | None:
        return walked.left(self.clock(), self.pace)

    def gone(self, walked: WalkedStage) -> float:
        """Seconds since the stage began."""
        return self.clock() - walked.began

    def times(self) -> str:
        """Time gone and time left of the walk, as far as it is known."""
        gone = duration(self.clock() - self.began)
        if any(walked.state == "stopped" for walked in self.stages.values()):
            return f"stopped after {gone}"
        left = {w.stage.name: self.left(w) for w in self.stages.values() if w.state in ("running", "to do")}
        if not left:
            return f"done in {gone}"
        known = sum(seconds for seconds in left.values() if seconds is not None)
        unknown = [name for name, seconds in left.items() if seconds is None]
        if not unknown:
            return f"{gone} gone, about {duration(known)} left"
        names = ", ".join(unknown[:_NAMES]) + (f" and {len(unknown) - _NAMES} more" if len(unknown) > _NAMES else "")
        return f"{gone} gone, " + (f"at least {duration(known)} left; " if known else "") + f"not known yet for {names}"
