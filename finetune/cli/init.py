"""`finetune init`: a recipe to begin with, commented, that passes `finetune check`."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import click

from finetune.errors import InputError, RecipeError

_BASE = "meta-llama/Llama-3.2-1B-Instruct"
_EXAMPLE = "data/example.jsonl"
_EXAMPLE_ROWS = (  # an example of the format, far too small to teach a model anything
    ("Which is heavier, a litre of water or a litre of oil?", "A litre of water. Most oils float on it."),
    ("Write 0.25 as a fraction.", "1/4"),
    ("Give me a word that means the opposite of 'scarce'.", "Plentiful."),
    ("How many legs do three spiders have?", "Twenty-four: a spider has eight legs, so three have 3 times 8."),
    ("Say in one sentence what a compiler does.", "It turns a program's source text into code that a machine can run."),
    ("Translate 'good morning' into Spanish.", "Buenos días."),
    ("What comes next: 2, 4, 8, 16?", "32. Each number is twice the one before."),
    ("Name two things that plants need to grow.", "Light and water."),
)


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default="recipe.yaml")
@click.option("--base", help=f"Checkpoint folder or hub id to start from.  [default: {_BASE}]")
@click.option("--data", help=f"Data file, folder, or hub data set.  [default: a small {_EXAMPLE} is written]")
def init(path: Path, base: str | None, data: str | None) -> None:
    """Write a commented recipe to PATH (default recipe.yaml). An existing file is never overwritten.

    \b
    Example:
      finetune init
      finetune init chat.yaml --base ../models/Llama-2-7b-hf --data demo.jsonl
    """
    path = path / "recipe.yaml" if path.is_dir() else path
    if path.exists():
        raise InputError(f"{path} exists already; give another name, or remove it first")
    folder = path.parent
    text = _recipe_text(path, _base_value(base, folder), _data_entry(data, folder))
    _prove(text, base, data)
    folder.mkdir(parents=True, exist_ok=True)
    if data is None and not (folder / _EXAMPLE).exists():
        _write_example(folder / _EXAMPLE)
        click.echo(f"wrote {folder / _EXAMPLE} ({len(_EXAMPLE_ROWS)} rows that show the format: put your own there)")
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    if base is not None and not (given := Path(os.path.expanduser(base))).exists():
        click.echo(f"base {base}: taken for a hub id, since there is no folder {given.absolute()}")
    click.echo(f"wrote {path}\nnext: finetune check {shlex.quote(str(path))}")


def _recipe_text(path: Path, base: str, data: str) -> str:
    template = Path(__file__).parents[1].joinpath("recipe", "starter.yaml").read_text(encoding="utf-8")
    values = {
        "SCHEMA": schema_reference(path.parent),
        "FILE": shlex.quote(path.name),
        "NAME": _name(path),
        "GATED": " This one asks you to accept its licence there." if base == _BASE else "",
        "BASE": _yaml(base),
        "DATA": data,
    }
    return re.sub("__([A-Z]+)__", lambda found: values[found[1]], template)


def schema_reference(folder: Path) -> str:
    """Where an editor finds the schema: relative where it lies under the folder we work in, such as a project's
    virtual environment, so that the recipe can be shared; else absolute."""
    schema = Path(__file__).resolve().parents[1] / "recipe" / "schema.json"
    if schema.is_relative_to(Path.cwd()) and folder.resolve().is_relative_to(Path.cwd()):
        return Path(os.path.relpath(schema, folder.resolve())).as_posix()
    return schema.as_uri()


def _name(path: Path) -> str:
    """A run name from the file's name, or from its folder's where the file is just recipe.yaml."""
    stem = path.resolve().parent.name if path.stem == "recipe" else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64]
    return _yaml(name or "chat")


def _base_value(base: str | None, folder: Path) -> str:
    from finetune.recipe.base_checks import looks_like_path

    if base is None:
        return _BASE
    given = Path(os.path.expanduser(base))
    if given.exists():
        return _from_folder(given, folder)
    if looks_like_path(base):
        raise InputError(f"--base {base}: no such folder")
    return base


def _data_entry(data: str | None, folder: Path) -> str:
    from finetune.recipe.checks import DATA_EXTENSIONS

    if data is None:
        return f"path: {_EXAMPLE}"
    given = Path(os.path.expanduser(data))
    if given.exists():
        return f"path: {_yaml(_from_folder(given, folder))}"
    if data.count("/") != 1 or data.startswith((".", "~", "/")) or data.endswith(DATA_EXTENSIONS):
        raise InputError(f"--data {data}: no such file or folder")
    return f"hub: {_yaml(data)}"


def _from_folder(given: Path, folder: Path) -> str:
    """A path as the recipe should write it: absolute if it was given so, else relative to the recipe's folder."""
    if given.is_absolute():
        return str(given)
    relative = Path(os.path.relpath(given.absolute(), folder.absolute())).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"


def _yaml(text: str) -> str:
    """The text as a YAML value, in quotes where YAML would read it as something else."""
    from finetune.recipe.positions import read_yaml

    return text if read_yaml(f"- {text} # end").value == [text] else json.dumps(text, ensure_ascii=False)


def _prove(text: str, base: str | None, data: str | None) -> None:
    """What would be written must pass `check`; what was given and is wrong is told before anything is written."""
    from finetune.recipe.checks import check_base, check_data
    from finetune.recipe.load import recipe_from_dict
    from finetune.recipe.positions import read_yaml

    recipe = read_yaml(text).value
    if (
        base is not None and Path(os.path.expanduser(base)).exists()
    ):  # the recipe's folder may not be there yet: absolute
        recipe["model"]["base"] = str(Path(os.path.expanduser(base)).absolute())
    if data is not None and Path(os.path.expanduser(data)).exists():
        recipe["stages"]["sft"]["data"] = [{"path": str(Path(os.path.expanduser(data)).absolute())}]
    loaded = recipe_from_dict(recipe)
    place = (loaded.recipe, loaded.folder, loaded.source)
    problems = [*(check_base(*place) if base is not None else ()), *(check_data(*place) if data is not None else ())]
    if problems:
        raise RecipeError(problems, "finetune init")


def _write_example(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        for question, answer in _EXAMPLE_ROWS:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
