"""How long a stage will take, where that can be known: from a finished stage of the same work, by its length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune.plan.manifest import read_manifest
from finetune.plan.plan import Plan, put_at
from finetune.recipe.references import references, row_sources
from finetune.recipe.schema import Stage


class Pace:
    """Seconds that stages took. `learn` one, then ask for others."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @classmethod
    def of(cls, plan: Plan) -> Pace:
        """All finished stages of a plan."""
        pace = cls()
        for stage in plan.stages:
            if stage.state == "done" and (manifest := read_manifest(stage.folder)) is not None:
                pace.learn(stage.settings, manifest)
        return pace

    def learn(self, settings: Stage, manifest: Mapping[str, Any]) -> None:
        """Take a finished run's time into account; the last one of a sort of work counts."""
        sort, length = work_of(settings)
        # "seconds" is of the last session alone; training counts its steps' time over all sessions.
        trained = manifest.get("metrics", {}).get("seconds") or 0.0
        self._seconds[sort] = max(float(manifest.get("seconds", 0.0)), float(trained)) / length

    def expected(self, settings: Stage) -> float | None:
        """Seconds for a whole stage; None where no finished one did the same sort of work."""
        sort, length = work_of(settings)
        per_unit = self._seconds.get(sort)
        return None if per_unit is None else per_unit * length


def work_of(settings: Stage) -> tuple[str, float]:
    """(what sort of work, how much): stages of the same sort take time in proportion to their amounts.

    The amount is a number of steps (train.max_steps, iterations) where it is given. Else it is 1, and only a stage with
    the same rows is of the same sort; which stage it reads does not matter, as in the rounds of a recipe.
    """
    content = settings.model_dump(mode="json")
    for keys, _, wanted in references(settings):
        put_at(content, keys, wanted)
    train = content.get("train") or {}
    length = train.get("max_steps") or content.get("iterations")
    if length:
        for keys, _ in row_sources(settings):
            content.pop(str(keys[0]), None)
        train.pop("max_steps", None)
        content.pop("iterations", None)
    return json.dumps(content, sort_keys=True), float(length or 1)
