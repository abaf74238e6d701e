"""docs/migrating.md is true: its keys are ones of the schema, and ones that the import reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

from finetune.recipe.hints import known_kinds
from finetune.recipe.schema import Recipe
from finetune.recipe.words import alternatives, is_section

MODULES = {
    "Axolotl": ("axolotl", "axolotl_data", "loop"),
    "LLaMA-Factory": ("track", "llama_factory", "llama_factory_ppo", "dataset_info", "loop"),
    "torchtune": ("torchtune", "torchtune_data", "torchtune_loop"),
    "TRL": ("track", "trl", "trl_data", "trl_losses", "loop", "model"),
}


@pytest.fixture(scope="module")
def guide(root: Path) -> str:
    return (root / "docs" / "migrating.md").read_text(encoding="utf-8")


def our_keys() -> set[str]:
    """As the guide writes them: sections from the top, a stage's keys without its name; of data, an entry's keys."""
    keys = set(Recipe.model_fields) | {f"model.{key}" for key in _inside(Recipe, "model")}
    keys |= {f"adapter.{key}" for key in _inside(Recipe, "adapter")}
    keys |= {f"track.wandb.{key}" for key in ("project", "entity", "mode", "tags")} | {"track.tensorboard"}
    for stage in known_kinds().values():
        keys |= set(stage.model_fields)
        for section in ("train", "held_out", "data"):
            if section in stage.model_fields:
                keys |= {f"{section}.{key}" for key in _inside(stage, section)}
    return keys


def _inside(section: type[BaseModel], key: str) -> Iterator[str]:
    hint: Any = get_type_hints(section, include_extras=True)[key]
    for choice in alternatives(hint):
        inner = choice if is_section(choice) else next((arg for arg in getattr(choice, "__args__", ())), None)
        if inner is not None and is_section(inner):
            yield from inner.model_fields


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def section_of(guide: str, tool: str) -> str:
    return guide.partition(f"\n## {tool}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("tool", MODULES)
def test_every_key_of_ours_is_one_of_the_schema(guide: str, tool: str) -> None:
    table = rows(section_of(guide, tool))
    assert len(table) > 15
    known = our_keys()
    assert {"model.base", "adapter.rank", "train.epochs", "held_out.fraction", "data.hub", "kind"} <= known
    assert [key for row in table for key in quoted(row[1]) if key not in known] == []


@pytest.mark.parametrize("tool", MODULES)
def test_every_key_of_theirs_is_one_that_the_import_reads(root: Path, guide: str, tool: str) -> None:
    folder = root / "finetune" / "migrate"
    source = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES[tool])
    theirs = [key for row in rows(section_of(guide, tool)) for key in quoted(row[0])]
    assert [key for key in theirs if f'"{key}"' not in source] == []


def test_keys_in_the_common_table_and_the_text(guide: str) -> None:
    known = our_keys()
    common = guide.partition("\n## What behaves differently")[2].partition("\n## ")[0]
    named = [key for row in rows(common) for key in quoted(row[1])]
    keys = [key.partition(":")[0] for key in named if not key.startswith("finetune ")]
    assert len(keys) > 5  # the table was found
    assert [key for key in keys if key not in known and f"train.{key}" not in known] == []


def test_its_commands_are_ours(guide: str) -> None:
    from finetune.cli.main import COMMANDS

    commands = set(re.findall(r"finetune (\w+)", guide))
    assert "import" in commands and commands <= set(COMMANDS)


def test_commands_and_guides_that_the_import_names_are_there(root: Path) -> None:
    from finetune.cli.main import COMMANDS

    source = "".join(path.read_text(encoding="utf-8") for path in (root / "finetune" / "migrate").glob("*.py"))
    assert set(re.findall(r"`finetune (\w+)", source)) <= set(COMMANDS)
    guides = set(re.findall(r"docs/\w+\.md", source))
    assert len(guides) > 5 and all((root / guide).is_file() for guide in guides)
