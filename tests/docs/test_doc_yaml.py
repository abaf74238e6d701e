"""Every YAML block in the guides is a recipe, or a part of one, in today's language."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import pytest
from guides import Block, blocks, pages, read

from finetune.recipe.hints import known_kinds
from finetune.recipe.load import recipe_from_dict
from finetune.recipe.positions import read_yaml

OTHER_TOOLS = ("migrating.md",)
"""Guides whose blocks may be files of other tools; those say so behind their fence: ```yaml axolotl"""


@cache
def schema() -> dict[str, Any]:
    return json.loads(read("finetune/recipe/schema.json"))


def problems(value: Any, part: dict[str, Any]) -> list[str]:
    whole = {**part, "$defs": schema()["$defs"]}
    return [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(whole).iter_errors(value)
    ]


def fragment_problems(value: Any) -> list[str]:
    """What is wrong with a part of a recipe: sections of it, stages, or keys of one section."""
    if not isinstance(value, dict):
        return ["neither a recipe nor a part of one"]
    tops = schema()["properties"]
    if value.keys() <= tops.keys():
        return problems(value, {"type": "object", "properties": tops})
    if all(is_stage(entry) for entry in value.values()):
        return problems({"stages": value}, {"type": "object", "properties": tops})
    homes = [
        section
        for name, section in schema()["$defs"].items()
        if not name.endswith("InGroup") and value.keys() <= section.get("properties", {}).keys()
    ]
    if not homes:
        return [f"no section has the keys {sorted(value)}"]
    found = [problems(value, {"type": "object", "properties": home["properties"]}) for home in homes]
    return min(found, key=len)


def is_stage(entry: Any) -> bool:
    """A stage or a group, by its looks: a checker has a kind, too."""
    checkers = {"number", "regex", "json", "finished", "function"}
    return isinstance(entry, dict) and ("repeat" in entry or entry.get("kind") not in (None, *checkers))


def yaml_blocks() -> list[Block]:
    return [block for path in pages() for block in blocks(path) if block.language == "yaml"]


@pytest.mark.parametrize("block", yaml_blocks(), ids=str)
def test_a_yaml_block_is_a_recipe_or_a_part_of_one(block: Block) -> None:
    document = read_yaml(block.code)
    value = document.value
    assert not document.problems, f"{block}: {document.problems}"
    if isinstance(value, dict) and {"name", "model", "stages"} <= value.keys():
        recipe_from_dict(value)
    else:
        assert not fragment_problems(value), f"{block}: {fragment_problems(value)}"


def test_yaml_of_other_tools_is_only_where_it_belongs() -> None:
    for path in pages():
        for block in blocks(path):
            if block.language.startswith("yaml "):
                assert path.endswith(OTHER_TOOLS), f"{block}: {block.language}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": {"sft": {"kind": "sft", "data": [{"path": "a"}], "lr": 1}}},
        {"sft": {"kind": "sfft", "data": [{"path": "a"}]}},
        {"data": [{"path": "a", "weigth": 2}]},
        {"no_such_key": 1},
        [1],
    ],
)
def test_the_check_finds_what_is_wrong(wrong: Any) -> None:
    assert fragment_problems(wrong)


def test_every_kind_of_stage_is_shown_in_a_guide() -> None:
    shown = set()
    for block in yaml_blocks():
        if block.path != "docs/reference/recipe.md":
            for kind in known_kinds():
                shown |= {kind} if f"kind: {kind}" in block.code else set()
    assert shown == set(known_kinds())
