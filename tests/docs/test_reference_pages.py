"""The pages that are made from the code are those of today's code, and they are whole."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from guides import ROOT, anchors, read
from pydantic_core import PydanticUndefined

from finetune.cli.main import COMMANDS
from finetune.errors import FinetuneError
from finetune.recipe.hints import known_kinds
from finetune.recipe.schema import Recipe


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """docs, docs_recipe, docs_commands and docs_examples of the scripts folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield {
            name: importlib.import_module(name) for name in ("docs", "docs_recipe", "docs_commands", "docs_examples")
        }
    finally:
        sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.parametrize("page", ["recipe.md", "commands.md"])
def test_the_committed_pages_are_current(scripts: dict[str, ModuleType], page: str) -> None:
    made = scripts["docs"].PAGES[page]()
    assert read(f"docs/reference/{page}") == made, "run `python scripts/docs.py` and commit the result"


def test_every_key_of_the_language_is_in_the_recipe_page() -> None:
    """Against the JSON schema, which is made in another way."""
    text = read("docs/reference/recipe.md")
    schema = json.loads(read("finetune/recipe/schema.json"))
    sections = {"recipe": schema, **schema["$defs"]}
    for name, section in sections.items():
        if name in ("ByRound", "FirstThen") or name.endswith("InGroup"):
            continue
        for key in section["properties"]:
            assert f"| `{key}` |" in text or f"`{key}: all`" in text, f"{name}.{key}"
    assert all(f"## kind: {kind}\n" in text for kind in known_kinds())


def test_an_example_shows_every_key_whose_default_does_not(scripts: dict[str, ModuleType]) -> None:
    """A key that is required, or whose default is nothing (null, an empty list), stands in its section's example."""
    tops, inside = scripts["docs_recipe"].sections()
    sections = {of.title: of.section for of in (*tops.values(), *inside.values())}
    sections |= {"top level": Recipe, **{f"kind: {kind}": section for kind, section in known_kinds().items()}}
    examples = scripts["docs_examples"].EXAMPLES
    assert set(examples) == {*sections, "groups of stages"}
    for title, section in sections.items():
        shown = set(keys_in(yaml.safe_load(examples[title])))
        bare = [
            key for key, field in section.model_fields.items() if field.default in (PydanticUndefined, None, [], {})
        ]
        if title == "kind: ppo":
            shown.add("checker")
        assert set(bare) <= shown, f"the example of {title} lacks {sorted(set(bare) - shown)}"


def keys_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from keys_in(entry)


def test_every_command_and_option_is_in_the_commands_page(scripts: dict[str, ModuleType]) -> None:
    text = read("docs/reference/commands.md")
    found = scripts["docs_commands"].commands()
    assert set(found) == set(COMMANDS), f"no module for {sorted(set(COMMANDS) - set(found))}"
    for name, command in found.items():
        assert f"## finetune {name}\n" in text and f"\nfinetune {name} " in text.partition("Example")[2]
        part = text.partition(f"## finetune {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(f"`{spelling}`" in part for spelling in parameter.opts), (name, parameter.opts)


def test_links_within_a_page_lead_to_its_headings() -> None:
    text = read("docs/reference/recipe.md")
    for target in {part.partition(")")[0] for part in text.split("](#")[1:]}:
        assert target in anchors("docs/reference/recipe.md"), target


def test_every_error_and_exit_code_is_explained() -> None:
    text = read("docs/reference/errors.md")

    def tree(error: type[FinetuneError]) -> Iterator[type[FinetuneError]]:
        yield error
        for below in error.__subclasses__():
            if below.__module__ == "finetune.errors":
                yield from tree(below)

    for error in tree(FinetuneError):
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{error.__name__}` |")]
        assert row.split("|")[2].strip() == str(error.exit_code), f"{error.__name__} exits with {error.exit_code}"
