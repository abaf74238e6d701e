"""The plan: a recipe's stages in order, each with its inputs, fingerprint, folder, state and needs. No torch.

A fingerprint is a hash of all that a stage's result depends on: its settings, the base, the adapter settings, the
seed, the content of its data, and the fingerprints of the stages it reads. Same inputs, same folder: done work is
found again, changed work gets a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.durable import sha256
from finetune.errors import InputError
from finetune.plan.base_files import BaseFiles, locate_base
from finetune.plan.digest import source_digest
from finetune.plan.estimate import Estimate, estimate
from finetune.plan.manifest import read_manifest
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.positions import KeyPath
from finetune.recipe.references import references, row_sources
from finetune.recipe.schema import Recipe, Stage

State = Literal["done", "started", "to do"]
RULES = 2
"""Raised when the meaning of a setting changes, so that results of older rules are not taken for new ones."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage. inputs: names of the stages it reads. folder: where its run is, or will be. made_of: see below."""

    name: str
    kind: str
    settings: Stage
    made_of: Mapping[str, Any]
    fingerprint: str
    folder: Path
    state: State
    inputs: tuple[str, ...]
    estimate: Estimate

    @property
    def part(self) -> Path:
        """The folder of unfinished work."""
        return self.folder.with_name(self.folder.name + ".part")


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    base: BaseFiles
    stages: tuple[PlannedStage, ...]

    def stage(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)

    def needed_for(self, names: set[str]) -> list[PlannedStage]:
        """The named stages and all that they read, in the recipe's order."""
        wanted = set(names)
        for stage in reversed(self.stages):
            if stage.name in wanted:
                wanted.update(stage.inputs)
        return [stage for stage in self.stages if stage.name in wanted]


def make_plan(loaded: LoadedRecipe, runs: Path, *, weights: bool = False) -> Plan:
    """Plan a recipe below the folder `runs`. weights: also fetch a hub base's weights. Raises InputError."""
    recipe = loaded.recipe
    base = locate_base(recipe.model, loaded.folder, weights=weights)
    planned: dict[str, PlannedStage] = {}
    for name, settings in recipe.stages.items():
        inputs = stages_read(settings, set(planned))
        content = made_of(recipe, settings, base, planned, loaded.locate)
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        folder = runs / recipe.name / f"{name}-{fingerprint[:12]}"
        planned[name] = PlannedStage(
            name,
            settings.kind,
            settings,
            content,
            fingerprint,
            folder,
            _state(folder),
            inputs,
            estimate(base.config, recipe.model, recipe.adapter, settings),
        )
    return Plan(recipe, base, tuple(planned.values()))


def stages_read(settings: Stage, above: set[str]) -> tuple[str, ...]:
    """Names of the earlier stages that a stage reads, in order, each once."""
    return tuple(dict.fromkeys(name for _, name, _ in references(settings) if name in above))


def made_of(
    recipe: Recipe,
    settings: Stage,
    base: BaseFiles,
    planned: Mapping[str, PlannedStage],
    locate: Callable[[str], Path],
) -> dict[str, Any]:
    """All that a stage's result depends on, as JSON: settings in full, and in place of what it refers to (rows, stages,
    adapter folders) what identifies their content. Names of files, folders and stages do not enter. The fingerprint is
    its sha256; the manifest keeps it, so that a later plan can say what has changed (reasons.py)."""
    stage = settings.model_dump(mode="json")
    for keys, source in row_sources(settings):
        if source.stage is not None:
            place = f"stage:{planned[source.stage].fingerprint}"
        else:
            place = source_digest(source, locate)
        rest = source.model_dump(mode="json", exclude={"path", "hub", "stage", "revision"})
        put_at(stage, keys, {"content": place, **rest})
    for keys, name, wanted in references(settings):
        if wanted == "rows":
            continue
        put_at(stage, keys, f"stage:{planned[name].fingerprint}" if name in planned else adapter_digest(locate(name)))
    return {
        "rules": RULES,
        "seed": recipe.seed,
        "base": base.digest,
        "model": recipe.model.model_dump(mode="json", exclude={"base", "revision"}),
        "adapter": recipe.adapter.model_dump(mode="json"),
        "stage": stage,
    }


def put_at(value: Any, keys: KeyPath, new: Any) -> None:
    """Replace what stands at a key path of plain data."""
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] = new


def adapter_digest(folder: Path) -> str:
    """What identifies an adapter folder: its weights and configuration. Raises InputError where there is none."""
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    if missing := [path.name for path in files if not path.is_file()]:
        raise InputError(f"{folder} holds no adapter: {missing[0]} is missing")
    return "adapter:" + hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()


def _state(folder: Path) -> State:
    if read_manifest(folder) is not None:
        return "done"
    return "started" if folder.with_name(folder.name + ".part").is_dir() else "to do"
