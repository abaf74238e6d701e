"""What a recipe refers to: stages above, data files, adapters, the base. No network, no weights loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import Problem
from finetune.recipe.base_checks import Wrong, base_problems, looks_like_path
from finetune.recipe.data_settings import DataSource
from finetune.recipe.positions import KeyPath
from finetune.recipe.references import WRITES, Wanted, references, row_sources
from finetune.recipe.schema import Recipe
from finetune.recipe.source import Source, told_once
from finetune.recipe.words import did_you_mean, suggest

DATA_EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
_HUB_MODEL = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_HUB_DATA_SET = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_MEANT: Mapping[Wanted, str] = {
    "adapter": "an adapter that writes text",
    "reward": "a reward model",
    "samples": "a reject stage's samples",
    "rows": "rows",
    "adapters": "an adapter",
}


def check_files(recipe: Recipe, folder: Path, source: Source) -> list[Problem]:
    """Everything that is wrong with the files that the recipe names. `folder`: where relative paths begin."""
    return told_once(
        [
            *check_base(recipe, folder, source),
            *check_data(recipe, folder, source),
            *_check_adapters(recipe, folder, source),
        ]
    )


def located(folder: Path, path: str) -> Path:
    """A path as a recipe writes it: `~` is the home folder, relative paths begin at `folder`."""
    return folder / os.path.expanduser(path)  # pathlib's expanduser raises where there is no such user


def check_base(recipe: Recipe, folder: Path, source: Source) -> list[Problem]:
    """The base: a complete LLaMA checkpoint folder, or what could be a hub id."""
    base, path = recipe.model.base, located(folder, recipe.model.base)
    try:
        wrongs = base_problems(path) if path.exists() else _hub_base_problems(base, path)
        is_folder = path.is_dir()
    except OSError as error:
        wrongs, is_folder = [_unreadable(path, error)], False
    problems = [source.problem(("model", "base"), *wrong) for wrong in wrongs]
    if is_folder and recipe.model.revision is not None:
        problems.append(source.problem(("model", "revision"), "a revision belongs to a hub base; this is a folder"))
    return problems


def _hub_base_problems(base: str, path: Path) -> list[Wrong]:
    if looks_like_path(base) or ("/" in base and path.parent.is_dir()):
        hint = _similar(path) or "give a checkpoint folder or a hub id such as org/name"
        return [(f"no such folder: {path}", hint)]
    if not _HUB_MODEL.match(base):
        return [(f"'{base}' is neither a folder nor a hub id such as meta-llama/Llama-2-7b-hf", _similar(path))]
    return []


def check_data(recipe: Recipe, folder: Path, source: Source) -> list[Problem]:
    """The data: files and folders that exist and hold something, hub names that could be ones."""
    problems = []
    for key, data in data_sources(recipe):
        if data.path is not None:
            path = located(folder, data.path)
            try:
                wrong = _data_problem(path)
            except OSError as error:
                wrong = _unreadable(path, error)
            if wrong is not None:
                problems.append(source.problem((*key, "path"), *wrong))
        elif data.hub is not None and not _HUB_DATA_SET.match(data.hub):
            hint = f"write path: {data.hub}" if looks_like_path(data.hub) else None
            message = f"expected a hub data set such as org/name; found '{data.hub}'"
            problems.append(source.problem((*key, "hub"), message, hint))
    return problems


def data_sources(recipe: Recipe) -> Iterator[tuple[KeyPath, DataSource]]:
    """Every data source of every stage, held-out ones too, with its key path."""
    for name, stage in recipe.stages.items():
        for keys, data in row_sources(stage):
            yield ("stages", name, *keys), data


def reference_problems(data: Mapping[str, Any], folder: Path, source: Source) -> list[Problem]:
    """References to stages that are not above in the file. Works on what was read, so that it can be told together
    with what the schema finds."""
    stages = data.get("stages")
    if not isinstance(stages, Mapping):
        return []
    problems = []
    for name, stage in stages.items():
        for key, reference, wanted in references(stage):
            path: KeyPath = ("stages", name, *key)
            may_be_folder = wanted in ("adapter", "reward", "adapters")
            is_path = looks_like_path(reference, slashes=0) or _is_folder(folder / reference)
            if may_be_folder and is_path and reference not in stages:
                continue  # an adapter folder, looked at with the other files
            if wrong := _reference_problem(reference, name, stages, wanted, source):
                problems.append(source.problem(path, *wrong))
        if wrong := _mixed_average(stage, stages, source):
            problems.append(source.problem(("stages", name, "of"), *wrong))
    return problems


def _reference_problem(
    reference: str, reader: str, stages: Mapping[str, Any], wanted: Wanted, source: Source
) -> Wrong | None:
    names = list(stages)
    above = names[: names.index(reader)]
    told = source.stage(reference) if reference in names else reference
    if reference == reader:
        return f"stage {told} cannot read itself", None
    if reference in above:
        if (found := _sorts(reference, stages)) and wanted not in found:
            fitting = _listed((name for name in above if wanted in _sorts(name, stages)), source)
            hint = f"above, these do: {fitting}" if fitting else "no stage above does"
            return (
                f"stage {told} ({stages[reference].get('kind')}) gives {_MEANT[found[0]]}, not {_MEANT[wanted]}",
                hint,
            )
        return None
    if reference in names:
        return f"stage '{told}' stands below; a stage reads only stages above it", "move it up"
    listed = _listed(above, source)
    hint = did_you_mean(reference, listed.split(", ")) or (f"above are: {listed}" if listed else "none is above")
    what = "no stage above" if wanted in ("rows", "samples") else "neither a stage above nor an adapter folder"
    return f"'{reference}' is {what}", hint


def _listed(names: Iterable[str], source: Source) -> str:
    """Names as the user wrote them; a stage of a group is named once, not for each round."""
    return ", ".join(dict.fromkeys(map(source.stage, names)))


def _sorts(name: str, stages: Mapping[str, Any], depth: int = 0) -> tuple[Wanted, ...]:
    """What a stage can be referred to for; nothing where its kind is not known, which is told elsewhere."""
    stage = stages.get(name)
    kind = stage.get("kind") if isinstance(stage, Mapping) else None
    found = WRITES.get(kind, ()) if isinstance(kind, str) else ()
    if kind == "average" and depth < len(stages):  # of the sort of what it averages
        of = stage.get("of") if isinstance(stage, Mapping) else None
        entries = of if isinstance(of, list) else []
        first = next((entry for entry in entries if isinstance(entry, str) and entry in stages), None)
        if first is not None and (inner := _sorts(first, stages, depth + 1)):
            return ("reward", "adapters") if "reward" in inner else ("adapter", "adapters")
    return found


def _mixed_average(stage: Any, stages: Mapping[str, Any], source: Source) -> Wrong | None:
    if not isinstance(stage, Mapping) or stage.get("kind") != "average" or not isinstance(stage.get("of"), list):
        return None
    named = [name for name in stage["of"] if isinstance(name, str) and name in stages]
    rewards = [name for name in named if "reward" in _sorts(name, stages) and "adapter" not in _sorts(name, stages)]
    if rewards and len(rewards) < len(named):
        other = next(name for name in named if name not in rewards)
        return f"{source.stage(rewards[0])} is a reward model and {source.stage(other)} is not: they have no mean", None
    return None


def _check_adapters(recipe: Recipe, folder: Path, source: Source) -> list[Problem]:
    problems = []
    for name, stage in recipe.stages.items():
        for key, reference, wanted in references(stage):
            if reference in recipe.stages or wanted in ("rows", "samples"):
                continue
            path = located(folder, reference)
            try:
                wrong = _adapter_problem(path)
            except OSError as error:
                wrong = _unreadable(path, error)
            if wrong is not None:
                problems.append(source.problem(("stages", name, *key), *wrong))
    return problems


def _adapter_problem(path: Path) -> Wrong | None:
    if not path.is_dir():
        return f"no such adapter folder: {path}", _similar(path)
    if not (path / "adapter_config.json").is_file():
        return f"{path} has no adapter_config.json: not an adapter folder", None
    if not (path / "adapter_model.safetensors").is_file():
        return f"{path} has no adapter_model.safetensors: the adapter's weights are missing", None
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long for the disk, a folder that may not be read
        return False


def _unreadable(path: Path, error: OSError) -> Wrong:
    return f"{str(path)[:200]} cannot be read: {error.strerror}", None


def _data_problem(path: Path) -> Wrong | None:
    known = ", ".join(DATA_EXTENSIONS)
    if not path.exists():
        return f"no such file or folder: {path}", _similar(path)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in DATA_EXTENSIONS]
        if not files:
            return f"the folder {path} holds no {known} file", None
        if not any(file.stat().st_size for file in files):
            return f"the folder {path} holds only empty files", None
        return None
    if path.suffix.lower() not in DATA_EXTENSIONS:
        return f"{path.name}: data files end in {known}", None
    return (f"{path} is empty", None) if path.stat().st_size == 0 else None


def _similar(path: Path) -> str | None:
    """A hint at a neighbour of nearly that name. Closer than for keys: any two .jsonl files are alike."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    meant = suggest(path.name, names, 0.75)
    return None if meant is None else f"did you mean '{meant}'?"
