"""Another tool's configuration to a recipe: read, tell which tool's it is, carry over, check, write down as text."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import InputError, Problem, RecipeError
from finetune.migrate import axolotl, llama_factory, torchtune, trl
from finetune.migrate.account import Account, Section
from finetune.migrate.detect import TOOLS, tool_of
from finetune.migrate.draft import Draft
from finetune.migrate.left_out import account_for_the_rest
from finetune.migrate.places import Places
from finetune.migrate.render import render
from finetune.recipe.checks import check_files
from finetune.recipe.load import recipe_from_dict
from finetune.recipe.positions import Document, key_path_text, position_at, read_yaml

_MAX_BYTES = 4 * 2**20
"""A configuration has some kilobytes. What is larger is a data file given by mistake."""


@dataclass(frozen=True)
class Migration:
    """text: the recipe. tool and why: whose file it was, and by which keys. kind: of the stage. wrong: what
    `finetune check` would say of the files that the recipe names."""

    text: str
    account: Account
    tool: str
    why: str
    kind: str
    wrong: tuple[str, ...]


def migrate(path: Path, out: Path, *, tool: str | None = None, kind: str | None = None, schema: str = "") -> Migration:
    """The recipe for a configuration file. Nothing is written.

    out: where the recipe will stand, for relative paths. tool: None = told by the keys. kind: of TRL's commands, whose
    files do not say which they are for. Raises RecipeError with lines of their file, or InputError.
    """
    path = Path(os.path.expanduser(path))
    document = _read(path)
    values: dict[str, Any] = document.value
    found, why = (tool, "as told with --from") if tool is not None else tool_of(values, str(path))
    if kind is not None and found != "trl":
        raise InputError(f"--kind is for TRL's files, which do not say their command; {path} is {TOOLS[found]}'s")
    account = Account(str(path), TOOLS[found], document.positions)
    draft = Draft(account, Places(path, out.parent, Path.cwd()))
    draft.put(("name",), _name(path))
    theirs = Section(account, values)
    match found:
        case "axolotl":
            axolotl.fill(draft, theirs)
        case "llama-factory":
            llama_factory.fill(draft, theirs)
        case "torchtune":
            torchtune.fill(draft, theirs)
        case _:
            trl.fill(draft, theirs, kind)
    account.raise_problems()
    account_for_the_rest(account, values)
    recipe = read_yaml(text := render(draft.recipe, draft.comments, account, _head(path, account, draft))).value
    try:
        loaded = recipe_from_dict(recipe, out.parent)
    except RecipeError as error:
        raise RecipeError([_of_theirs(problem, draft) for problem in error.problems], str(path)) from error
    wrong = check_files(loaded.recipe, loaded.folder, loaded.source)
    first = f"# yaml-language-server: $schema={schema}\n" if schema else ""
    stage = recipe["stages"][draft.stage]
    return Migration(
        first + text,
        account,
        found,
        why,
        stage["kind"],
        tuple(f"{problem.key_path}: {problem.message}" for problem in wrong),
    )


def _of_theirs(problem: Problem, draft: Draft) -> Problem:
    """What is wrong in the recipe, told of the key of theirs that it came from."""
    hint = f"{problem.key_path} of a recipe"
    if origin := draft.origins.get(problem.key_path):
        position = position_at(draft.account.positions, origin)
        return Problem(problem.message, key_path_text(origin), position.line if position else None, hint)
    return Problem(f"{problem.key_path}: {problem.message}")


def _head(path: Path, account: Account, draft: Draft) -> str:
    return (
        f"Made by `finetune import` from {path.name}, a configuration of {account.tool}. Beside each value stands "
        f"the key that it came from, or whose default it is; what this tool does otherwise is at the end. `finetune "
        f"check` and `finetune inspect` come before the first run: docs/migrating.md says what behaves differently."
    )


def _name(path: Path) -> str:
    """Of the run folder: their file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:64] or "imported"


def _read(path: Path) -> Document:
    name = str(path)
    try:
        if path.is_dir():
            raise RecipeError([Problem("this is a folder; give the configuration file")], name)
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError([Problem("too large for a configuration; is this a data file?")], name)
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise RecipeError([Problem("no such file")], name) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError([Problem("not UTF-8 text", line=line)], name) from error
    except OSError as error:
        raise RecipeError([Problem(f"cannot be read: {error.strerror}")], name) from error
    document = read_yaml(text)
    if document.problems:
        said = [
            Problem(
                found.message.replace("part of the recipe language", "read here"),
                found.key_path,
                found.line,
                found.hint,
            )
            for found in document.problems
        ]
        raise RecipeError(said, name)
    if not isinstance(document.value, dict) or not document.value:
        raise RecipeError([Problem("the file holds no keys: it should be a configuration of another tool")], name)
    return document
