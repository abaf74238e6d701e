"""What a stage's trackers are told of it: the settings it ran with, and the runs that it was made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.engine.tracking import Opener, Tracking
from finetune.plan.plan import Plan, PlannedStage
from finetune.recipe.references import references, row_sources

_ABSOLUTE = re.compile(r"~?/|[A-Za-z]:[/\\]|\\\\")


@dataclass(frozen=True)
class Lineage:
    """group: ties the stages of one chain together. config: of the stage, as JSON without absolute paths.

    inputs: the stages that it reads, by name, each with its fingerprint; folders: of their finished runs.
    """

    recipe: str
    stage: str
    kind: str
    fingerprint: str
    group: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    folders: Mapping[str, Path]

    @property
    def name(self) -> str:
        return f"{self.recipe}/{self.stage}"


def open_tracking(plan: Plan, stage: PlannedStage, work: Path, say: Callable[[str], None]) -> Tracking:
    """The trackers that the recipe names, not yet open. work: where they write. say: as `run_recipe` has
    it, for all stages. Nothing is imported for none."""
    track = plan.recipe.track
    openers: dict[str, Opener] = {}
    if track.wandb is not None:
        from finetune.engine.wandb_tracker import WandbTracker

        wandb, told = track.wandb, describe_stage(plan, stage)
        openers["wandb"] = lambda resolved: WandbTracker(
            wandb, told, resolved, work, lambda line: say(f"{stage.name}: {line}")
        )
    if track.tensorboard:
        from finetune.engine.tensorboard_tracker import TensorBoardTracker

        config = describe_stage(plan, stage).config
        openers["tensorboard"] = lambda resolved: TensorBoardTracker(config, resolved, work / "tensorboard")
    return Tracking(work, openers)


def describe_stage(plan: Plan, stage: PlannedStage) -> Lineage:
    """All that a stranger needs to know what this stage is, and nothing of the machine that it runs on."""
    recipe = plan.recipe
    inputs = {name: plan.stage(name).fingerprint for name in stage.inputs}
    config = {
        "recipe": recipe.name,
        "stage": stage.name,
        "kind": stage.kind,
        "fingerprint": stage.fingerprint,
        "seed": recipe.seed,
        "settings": stage.settings.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json", exclude={"base", "revision"}),
        "adapter": recipe.adapter.model_dump(mode="json"),
        "base": {"name": plan.base.name, "revision": plan.base.revision, "digest": plan.base.digest},
        "digests": _digests(stage),
    }
    return Lineage(
        recipe.name,
        stage.name,
        stage.kind,
        stage.fingerprint,
        f"{recipe.name}-{_chain(stage)}",
        without_absolute_paths(config),
        inputs,
        {name: plan.stage(name).folder for name in stage.inputs},
    )


def _chain(stage: PlannedStage) -> str:
    """The same for all stages of a recipe on one base, adapter section and seed, whatever else changes in it: so a
    chain whose last stage is tried again stands in one group."""
    shared = {key: value for key, value in stage.made_of.items() if key != "stage"}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]


def _digests(stage: PlannedStage) -> dict[str, str]:
    """What identifies the content of all that the stage reads, by its place in the stage's settings."""
    places = [(*keys, "content") for keys, _ in row_sources(stage.settings)]
    places += [keys for keys, _, wanted in references(stage.settings) if wanted != "rows"]
    found = {}
    for keys in places:
        value: Any = stage.made_of["stage"]
        for key in keys:
            value = value[key]
        named = [key for key in keys if key != "content"]
        found["".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in named)[1:]] = str(value)
    return found


def without_absolute_paths(value: Any) -> Any:
    """JSON in which an absolute path, which can name a user or a customer, is its last name only."""
    if isinstance(value, Mapping):
        return {key: without_absolute_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_absolute_paths(item) for item in value]
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
