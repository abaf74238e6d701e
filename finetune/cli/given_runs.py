"""Which runs a command line means: folders, or stages of a recipe, and what they are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finetune.errors import InputError
from finetune.plan.manifest import read_manifest

BASE = "base"
_NOT_WRITERS = ("reward", "reject")


def stages_of(recipe: Path, names: Sequence[str], overrides: Sequence[str], runs: Path) -> list[Path]:
    """The folders of a recipe's finished stages: of the named ones, or of all that write answers. Raises InputError."""
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    plan = make_plan(load_recipe(recipe, overrides), runs)
    known = [stage.name for stage in plan.stages]
    done = [stage.name for stage in plan.stages if stage.state == "done"]
    for name in names:
        if name not in known:
            raise InputError(f"{recipe} has no stage '{name}'; it has {', '.join(known)}")
        if name not in done:
            raise InputError(
                f"stage {name} of {recipe} is not finished: `finetune run {recipe}` first{looked_in(runs)}"
            )
    chosen = names or [stage.name for stage in plan.stages if stage.name in done and stage.kind not in _NOT_WRITERS]
    if not chosen:
        missing = "no stage that writes answers is finished"
        raise InputError(f"{recipe}: {missing}: `finetune run {recipe}` first{looked_in(runs)}")
    return [plan.stage(name).folder for name in chosen]


def looked_in(runs: Path) -> str:
    """The end of a message that a run is not there: runs belong to the folder that one works in, or to --runs."""
    return f" (looked in {_told(runs)}; --runs names another folder)"


def where_runs_lie(runs: Path) -> str:
    """Which runs folder a command reads, in one line."""
    return f"runs: {_told(runs)}"


def _told(runs: Path) -> str:
    return os.path.abspath(runs) + ("" if runs.is_dir() else ", which does not exist")


def existing(folder: Path) -> Path:
    """The folder, where there is one. Raises InputError."""
    if not folder.exists():
        raise InputError(f"no such run or recipe: {folder}")
    if folder.name.endswith(".part"):
        raise InputError(f"{folder} is not finished: run its recipe again, it goes on from the last checkpoint")
    return folder


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """Runs by the names that they answer to: their stages', or their folders' where two stages share one."""
    stages = []
    for folder in folders:
        manifest = read_manifest(folder)
        stages.append(str((manifest or {}).get("stage") or folder.resolve().name))
    shared = {name for name, count in Counter(stages).items() if count > 1} | {BASE}
    found: dict[str, Path] = {}
    for folder, stage in zip(folders, stages, strict=True):
        name = folder.resolve().name if stage in shared else stage
        name = "run" if name == BASE else name
        if name in found:
            raise InputError(f"{found[name]} and {folder} would have one name: give each run once")
        found[name] = folder
    return found
