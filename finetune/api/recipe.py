"""A recipe in Python: what a YAML file says, checked, and never changed; a change makes another recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.api.inspection import Inspection, inspect_stage
from finetune.api.planned import Plan
from finetune.api.saving import as_yaml, merged, moved, plain
from finetune.data.check_data import check_data
from finetune.durable import rename_file, write_bytes
from finetune.errors import InputError
from finetune.notebook.page import boxed, heading, yaml_code
from finetune.recipe.load import LoadedRecipe, check_recipe, load_recipe, recipe_from_dict
from finetune.recipe.overrides import apply_overrides
from finetune.recipe.positions import read_yaml

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Recipe:
    """A recipe: a base, an adapter, and named stages.

        recipe = ft.Recipe.load("recipe.yaml", set=["stages.sft.train.epochs=1"])
        short = recipe.set("model.max_length=512")
        short.save("short.yaml")

    loaded: the recipe as the engine takes it, complete and validated, its rounds written out (`loaded.recipe` has
    every setting as an attribute). written: what the user wrote, before the settings of `set`.
    """

    loaded: LoadedRecipe
    written: Mapping[str, Any]

    @classmethod
    def load(cls, path: PathLike, set: str | Sequence[str] = ()) -> Recipe:
        """Read a recipe file. set: changes as `--set` takes them, `"key.path=value"`.

        Raises RecipeError with every problem, its line and what to do about it.

            ft.Recipe.load("recipe.yaml", set=["seed=3", "stages.sft.train.epochs=1"])
        """
        overrides = (set,) if isinstance(set, str) else tuple(set)
        loaded = load_recipe(os.fspath(path), overrides)
        assert loaded.path is not None  # it came from a file
        return cls(loaded, read_yaml(loaded.path.read_bytes().decode("utf-8-sig")).value)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], folder: PathLike | None = None, set: str | Sequence[str] = ()
    ) -> Recipe:
        """A recipe from plain data. folder: where its relative paths begin, None = the current folder.

        Raises RecipeError.

            ft.Recipe.from_dict({
                "name": "chat",
                "model": {"base": "meta-llama/Llama-3.2-1B"},
                "stages": {"sft": {"kind": "sft", "data": [{"path": "mine.jsonl"}]}},
            })
        """
        overrides = (set,) if isinstance(set, str) else tuple(set)
        loaded = recipe_from_dict(data, None if folder is None else Path(folder).expanduser().absolute(), overrides)
        return cls(loaded, plain(data))

    @property
    def name(self) -> str:
        """Name of the folder, below `runs`, that holds its runs."""
        return self.loaded.recipe.name

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages in their order; those of a group with the number of the round, as best.2."""
        return tuple(self.loaded.recipe.stages)

    @property
    def folder(self) -> Path:
        """Where relative paths begin."""
        return self.loaded.folder

    def set(self, *changes: str) -> Recipe:
        """Another recipe, with values changed as `--set` does it; the changes are recorded in its runs.

        recipe.set("stages.sft.train.epochs=1", "seed=3")
        """
        overrides = (*self.loaded.overrides, *changes)
        return Recipe(recipe_from_dict(self.written, self.folder, overrides), self.written)

    def with_(self, **changes: Any) -> Recipe:
        """Another recipe, with sections merged into this one's; lists and values are replaced.

        recipe.with_(model={"max_length": 512}, stages={"sft": {"train": {"epochs": 1}}})
        """
        return Recipe.from_dict(merged(self.to_dict(), changes), self.folder)

    def check(self) -> Recipe:
        """Check the files that the recipe names, too: base, data, adapters. Returns the recipe itself.

        Raises RecipeError with all that is wrong. Needs no network.

            ft.Recipe.load("recipe.yaml").check()
        """
        check_recipe(self.loaded)
        check_data(self.loaded)
        return self

    def plan(self, runs: PathLike = "runs") -> Plan:
        """What `ft.run` would do: every stage with its state, why it would run, and what it needs. Trains nothing.

        recipe.plan()
        """
        self.check()
        return Plan.of(self.loaded, Path(runs))

    def inspect(self, stage: str | None = None, rows: int = 3, runs: PathLike = "runs") -> Inspection:
        """A stage's rows as tokens, trained or not, with lengths, and what is left out and why.

        stage: None = the first one with data. rows: how many to show. runs: where the rows of earlier stages lie, if
        the stage reads them. Needs the base's config and tokenizer, not its weights. Raises InputError and DataError.

            recipe.inspect("sft", rows=5)
        """
        return inspect_stage(self.loaded, stage, rows, Path(runs))

    def to_dict(self, *, complete: bool = False) -> dict[str, Any]:
        """The recipe as plain data, a copy. complete: with every default, and rounds written out as plain stages.

        recipe.to_dict()["stages"]["sft"]["train"]
        """
        if complete:
            return self.loaded.recipe.model_dump(mode="json")
        data = plain(self.written)
        apply_overrides(data, self.loaded.overrides)
        return data

    def save(self, path: PathLike, *, overwrite: bool = False) -> Path:
        """Write the recipe as YAML that runs the same: every stage has the same fingerprint, and so the same run.

        Relative paths are rewritten where the file lies in another folder. Comments of a loaded file are not kept.
        overwrite: replace a file that is there. Raises InputError.

            recipe.save("recipes/mine.yaml")
        """
        target = Path(path).expanduser()
        if target.exists() and not overwrite:
            raise InputError(f"{target} is there already: give another name, or overwrite=True")
        if target.suffix not in (".yaml", ".yml"):
            raise InputError(f"{target}: the name of a recipe ends in .yaml")
        if not target.parent.is_dir():
            raise InputError(f"{target}: there is no folder {target.parent}; make it first")
        data = self.to_dict()
        if os.path.realpath(self.folder) != os.path.realpath(target.parent):
            data = moved(data, self.folder, target.parent)
        part = target.with_name(target.name + ".part")
        write_bytes(part, as_yaml(data).encode())
        rename_file(part, target)
        return target

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Recipe):
            return NotImplemented
        return self.loaded.recipe == other.loaded.recipe and self.folder == other.folder

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name} ({stage.kind})" for name, stage in self.loaded.recipe.stages.items())
        return f"Recipe {self.name} on {self.loaded.recipe.model.base}: {kinds}"

    def __str__(self) -> str:
        return as_yaml(self.to_dict())

    def _repr_html_(self) -> str:
        return boxed(
            heading(self.name, f"{len(self.stages)} stages on {self.loaded.recipe.model.base}"),
            yaml_code(as_yaml(self.to_dict()), title=str(self.loaded.path or "recipe")),
        )


def as_recipe(recipe: Recipe | PathLike | Mapping[str, Any]) -> Recipe:
    """A recipe, read where a file or plain data is given. Raises RecipeError."""
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.from_dict(recipe) if isinstance(recipe, Mapping) else Recipe.load(recipe)
