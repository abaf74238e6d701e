"""A recipe from a YAML file or a dict: complete, checked, frozen, or one RecipeError with everything that is wrong.

`load_recipe` looks at nothing but the recipe; `check_recipe` also at the files it names. Neither needs the network.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import Problem, RecipeError
from finetune.recipe.checks import check_files, located, reference_problems
from finetune.recipe.explain import explain
from finetune.recipe.hints import is_of_another_tool, kind_hint, known_kinds
from finetune.recipe.overrides import apply_overrides
from finetune.recipe.positions import KeyPath, Position, read_yaml
from finetune.recipe.rounds import repeated_work, without_groups
from finetune.recipe.schema import Recipe
from finetune.recipe.source import Source, told_once
from finetune.recipe.words import describe_value, did_you_mean, suggest

_MAX_BYTES = 4 * 2**20
"""A recipe has some kilobytes. What is larger is a data file given by mistake, and slow to parse as YAML."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe, its groups written out round by round, and where it stands. `folder`: where its relative paths begin.
    `overrides`: the --set, as given."""

    recipe: Recipe
    path: Path | None
    folder: Path
    overrides: tuple[str, ...] = ()
    source: Source = field(default_factory=lambda: Source("recipe"), repr=False, compare=False)

    def locate(self, path: str) -> Path:
        """A path as the recipe writes it: `~` is the home folder, relative paths begin at the recipe's folder."""
        return located(self.folder, path)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file and apply `key.path=value` overrides. Raises RecipeError with all problems at once."""
    path = Path(os.path.expanduser(path))
    name = str(path)
    document = read_yaml(_read(path, name))
    hint: str | None
    if document.value is None and not document.problems:
        hint = "`finetune init` writes a recipe to begin with"
        document.problems.append(Problem("the file is empty; a recipe needs name, model and stages", "", None, hint))
    elif document.value is not None and not isinstance(document.value, dict):
        hint = "put a space after each ':'" if isinstance(document.value, str) and ":" in document.value else None
        message = f"expected a section with name, model and stages; found {describe_value(document.value)}"
        document.problems.append(Problem(message, "", document.positions[()].line, hint))
    if not isinstance(document.value, dict):
        raise RecipeError(document.problems, name)
    if is_of_another_tool(document.value):
        hint = f"`finetune import {shlex.quote(name)}` makes a recipe of it"
        raise RecipeError([Problem("this is another tool's configuration, not a recipe", hint=hint)], name)
    return _validated(document.value, overrides, path, path.parent, name, document.positions, document.problems)


def recipe_from_dict(
    data: Mapping[str, Any], folder: Path | None = None, overrides: Sequence[str] = ()
) -> LoadedRecipe:
    """A recipe from plain data, as a notebook has it. `folder`: where relative paths begin; None = the current one."""
    return _validated(_plain(data), overrides, None, folder or Path.cwd(), "recipe", {}, [])


def check_recipe(loaded: LoadedRecipe) -> None:
    """Raise RecipeError with all problems of the files that the recipe names: base, data, adapters to start from."""
    if problems := check_files(loaded.recipe, loaded.folder, loaded.source):
        raise RecipeError(problems, loaded.source.name)


def _read(path: Path, name: str) -> str:
    try:
        if path.is_dir():
            inside = sorted(str(other) for other in path.glob("*.yaml"))
            hint = f"it holds {', '.join(inside[:3])}" if inside else None
            raise RecipeError([Problem("this is a folder; give the recipe file", hint=hint)], name)
        if path.stat().st_size > _MAX_BYTES:
            size = f"{path.stat().st_size / 2**20:.0f} MiB"
            raise RecipeError([Problem(f"{size} are too much for a recipe; is this a data file?")], name)
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        neighbours = [str(other) for pattern in ("*.yaml", "*.yml") for other in path.parent.glob(pattern)]
        hint = did_you_mean(name, neighbours) or "`finetune init` writes a recipe to begin with"
        raise RecipeError([Problem("no such file", hint=hint)], name) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError([Problem("not UTF-8 text", line=line)], name) from error
    except OSError as error:
        raise RecipeError([Problem(f"cannot be read: {error.strerror}")], name) from error


def _validated(
    data: dict[str, Any],
    overrides: Sequence[str],
    path: Path | None,
    folder: Path,
    name: str,
    positions: Mapping[KeyPath, Position],
    problems: Sequence[Problem],
) -> LoadedRecipe:
    given, set_problems = apply_overrides(data, overrides)
    data, source, round_problems = without_groups(data, Source(name, positions, given))
    found = [*problems, *set_problems, *round_problems, *_kind_problems(data, source)]
    recipe = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        told = {problem.key_path for problem in round_problems}
        explained = explain(error, data, source, _stages_of_unknown_kind(data))
        found += [problem for problem in explained if problem.key_path not in told]
    if not round_problems:  # else a name may be of no stage only because its group is wrong
        found += reference_problems(data, folder, source)
    if not found:
        found += repeated_work(data["stages"], source)
    if recipe is None or found:
        raise RecipeError(sorted(told_once(found), key=lambda problem: problem.line or 0), name)
    return LoadedRecipe(recipe, path, folder, tuple(overrides), source)


def _stages(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    stages = data.get("stages")
    return {k: v for k, v in stages.items() if isinstance(v, Mapping)} if isinstance(stages, Mapping) else {}


def _stages_of_unknown_kind(data: Mapping[str, Any]) -> set[str]:
    kinds = known_kinds()
    return {name for name, stage in _stages(data).items() if not _is_kind(stage.get("kind"), kinds)}


def _is_kind(value: Any, kinds: Mapping[str, Any]) -> bool:
    return isinstance(value, str) and value in kinds


def _kind_problems(data: Mapping[str, Any], source: Source) -> list[Problem]:
    """A stage whose kind is not known is told once: without a kind, nothing else can be said about its keys."""
    kinds = known_kinds()
    known = ", ".join(kinds)
    problems = []
    for name, stage in _stages(data).items():
        path: KeyPath = ("stages", name, "kind")
        if "kind" not in stage:
            typo = suggest("kind", [key for key in stage if isinstance(key, str)])
            hint = f"is '{typo}' meant to be 'kind'?" if typo else None
            message = f"missing key: stage {source.stage(name)}, which begins here, needs it ({known})"
            problems.append(source.problem(path, message, hint, at=path[:-1]))
        elif not _is_kind(kind := stage["kind"], kinds):
            found = f"'{kind}'" if isinstance(kind, str) else describe_value(kind)
            hint = kind_hint(kind) if isinstance(kind, str) else None
            problems.append(source.problem(path, f"unknown kind {found}; this version knows: {known}", hint))
    return problems


def _plain(value: Any) -> Any:
    """Own copies of dicts and lists, paths as text: what the YAML reader would give."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
