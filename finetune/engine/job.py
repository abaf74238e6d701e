"""What a stage is given and what it gives back. A stage sees its own settings and a Job, never the recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.engine.progress import MakeProgress, make_progress
from finetune.engine.tracking import Tracking, no_tracking
from finetune.model.bases import Bases
from finetune.plan.base_files import BaseFiles
from finetune.recipe.settings import AdapterSettings, ModelSettings


@dataclass(frozen=True)
class Job:
    """name: of the stage. out: the folder to write the result into. work: for checkpoints and what else is thrown away.

    inputs: folders of the finished stages that this one reads, by name. locate: a path as the recipe writes it → where
    it is. say: shows the user a line. bases: the base in memory, which the stages of a process share. functions:
    checkers that a Python caller gave by name. progress: (title, total, done) → what the stage tells of its steps.
    tracking: the recipe's trackers; a stage begins them, its metrics.jsonl and its samples go to them.
    """

    name: str
    recipe_name: str
    fingerprint: str
    seed: int
    base: BaseFiles
    model: ModelSettings
    adapter: AdapterSettings
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    cache: Path
    locate: Callable[[str], Path]
    say: Callable[[str], None]
    bases: Bases = field(default_factory=Bases)
    functions: Mapping[str, Callable[..., float]] = field(default_factory=dict)
    progress: MakeProgress = make_progress
    tracking: Tracking = field(default_factory=no_tracking)


@dataclass(frozen=True)
class Outcome:
    """What a stage reports for its manifest; every value is JSON."""

    metrics: Mapping[str, Any]
    data: Mapping[str, Any]
    family: Mapping[str, Any]
    resolved: Mapping[str, Any]
    proof: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def results(self) -> dict[str, Any]:
        """What trackers show at the end: figures, and of the data what is a number."""
        counts = {key: value for key, value in self.data.items() if isinstance(value, int | float)}
        return {"metrics": dict(self.metrics), "data": counts, "proof": dict(self.proof)}
