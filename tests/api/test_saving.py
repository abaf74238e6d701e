"""Recipes saved as YAML run the same: equal fingerprints for stages of every kind, in whatever folder the file lies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from release.made_runs import weights
from stage_recipes import JUDGED, PAIRS, QUESTIONS, sft_stage, write_jsonl

import finetune as ft
from finetune.api.saving import as_yaml, plain
from finetune.errors import InputError
from finetune.plan.plan import make_plan
from finetune.recipe.positions import read_yaml

ROWS = [{"path": "data/questions.jsonl"}]
PAIRS_ROWS = [{"path": "data/pairs.jsonl", "take": 8, "weight": 0.5}, {"path": "more"}]
PROMPTS = [{"path": "data/questions.jsonl"}]
KINDS: dict[str, Any] = {
    "sft": {"kind": "sft", "start_from": "adapters/a", "data": [*ROWS, {"hub": "./more", "split": "train"}]},
    "helpful": {"kind": "reward", "start_from": "sft", "data": PAIRS_ROWS, "held_out": {"data": PAIRS_ROWS[:1]}},
    "best": {"kind": "reject", "policy": "./adapters/a", "reward": "helpful", "prompts": PROMPTS},
    "passing": {
        "kind": "reject",
        "policy": "sft",
        "checker": {"kind": "regex", "pattern": "It|2e-4"},
        "prompts": PROMPTS,
        "earlier": ["best"],
    },
    "sft2": {"kind": "sft", "data": [{"stage": "best"}, *ROWS]},
    "ppo": {
        "kind": "ppo",
        "start_from": "sft2",
        "reward": "helpful",
        "safety": {"reward": "adapters/r"},
        "prompts": PROMPTS,
    },
    "dpo": {"kind": "dpo", "start_from": "adapters/a", "data": PAIRS_ROWS, "beta": 2e-1},
    "kto": {"kind": "dpo", "loss": "kto", "data": [{"path": "data/judged.jsonl"}]},
    "grpo": {"kind": "grpo", "start_from": "sft", "reward": "helpful", "prompts": PROMPTS},
    "rloo": {"kind": "rloo", "start_from": "sft", "reward": "helpful", "prompts": PROMPTS},
    "mean": {"kind": "average", "of": ["sft", "./adapters/b", "dpo"]},
}
"""Every kind, with paths in every place that a stage can have one: relative, dotted, folders, of adapters."""
GROUP: dict[str, Any] = {
    "sft": {"kind": "sft", "data": ROWS},
    "helpful": {"kind": "reward", "data": PAIRS_ROWS},
    "rlhf": {
        "repeat": 2,
        "stages": {
            "best": {
                "kind": "reject",
                "policy": {"first": "adapters/a", "then": "sft2"},
                "reward": {"round": ["helpful", "adapters/r"]},
                "prompts": [{"path": {"round": ["data/questions.jsonl", "more"]}, "rounds": "all"}],
                "temperature": {"round": [1.0, 1.2]},
                "earlier": "all",
            },
            "sft2": {
                "kind": "sft",
                "data": {"round": [[{"stage": "best"}, *ROWS], [{"stage": "best"}]]},
                "held_out": {"round": [{"data": ROWS}, {"fraction": 0.1}]},
            },
        },
    },
    "last": {"kind": "dpo", "start_from": "sft2", "data": PAIRS_ROWS},
}


@pytest.fixture
def home(write_recipe: Callable[..., Path], tiny_base: Path, tmp_path: Path) -> Path:
    """A folder with data, adapters and a base beside it, and recipe.yaml below it."""
    home = tmp_path / "home"
    for folder in ("data", "more", "adapters/a", "adapters/b", "adapters/r"):
        (home / folder).mkdir(parents=True)
    write_jsonl(home / "data/questions.jsonl", QUESTIONS)
    write_jsonl(home / "data/judged.jsonl", JUDGED)
    for file in ("data/pairs.jsonl", "more/pairs.jsonl"):
        write_jsonl(home / file, PAIRS)
    for name in ("a", "b", "r"):
        (home / "adapters" / name / "adapter_model.safetensors").write_bytes(weights(name))
        (home / "adapters" / name / "adapter_config.json").write_text(json.dumps({"r": 4}))
    os.symlink(tiny_base, home / "base")
    return home


def recipe_of(home: Path, stages: dict[str, Any], base: str = "base") -> ft.Recipe:
    data = {"name": "every", "model": {"base": base, "load_in": "fp32"}, "adapter": {"rank": 4}, "stages": stages}
    return ft.Recipe.from_dict(data, home, set="adapter.alpha=16")


def fingerprints(recipe: ft.Recipe) -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in make_plan(recipe.loaded, Path("runs")).stages}


@pytest.mark.parametrize("stages", [KINDS, GROUP], ids=["every kind", "rounds"])
@pytest.mark.parametrize("place", ["home", "home/recipes/mine", "elsewhere"])
def test_a_saved_recipe_has_the_same_fingerprints(
    home: Path, tmp_path: Path, stages: dict[str, Any], place: str
) -> None:
    recipe = recipe_of(home, stages)
    before = fingerprints(recipe)
    assert len(before) == len(recipe.stages) >= 7
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    saved = recipe.save(folder / "mine.yaml")
    again = ft.Recipe.load(saved)
    assert fingerprints(again) == before
    assert str(tmp_path) not in saved.read_text(), "paths stay relative"
    # and once more, from there to somewhere else
    further = tmp_path / "further"
    further.mkdir()
    assert fingerprints(ft.Recipe.load(again.save(further / "other.yaml"))) == before


def test_stages_of_every_kind_are_tried() -> None:
    from finetune.recipe.hints import known_kinds

    assert {stage["kind"] for stage in KINDS.values()} == set(known_kinds())


def test_a_link_on_the_way_is_no_obstacle(home: Path, tmp_path: Path) -> None:
    """`..` from a linked folder leads out of where the link leads to, for Python as for the system."""
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "real")
    recipe = recipe_of(home, KINDS)
    saved = recipe.save(tmp_path / "linked" / "mine.yaml")
    assert fingerprints(ft.Recipe.load(saved)) == fingerprints(recipe)


def test_an_adapter_that_has_a_stages_name(home: Path) -> None:
    """In its own folder the path of the adapter is bare, and would be read as the stage above."""
    stages = {"a": sft_stage(data=ROWS), "b": sft_stage(start_from="./adapters/a", data=ROWS)}
    recipe = recipe_of(home, stages)
    saved = recipe.save(home / "adapters" / "mine.yaml")
    assert fingerprints(ft.Recipe.load(saved)) == fingerprints(recipe)


def test_a_loaded_file_keeps_what_it_says(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Only what was written is written again, with the changes of `set` in it; groups stay groups."""
    path = write_recipe({"sft": sft_stage()})
    recipe = ft.Recipe.load(path, set=["stages.sft.train.epochs=1", "seed=3"])
    data = ft.Recipe.load(recipe.save(tmp_path / "mine.yaml")).to_dict()
    assert data["stages"]["sft"]["train"]["epochs"] == 1 and data["seed"] == 3
    assert "schedule" not in data["stages"]["sft"]["train"]
    assert recipe.to_dict(complete=True)["stages"]["sft"]["train"]["schedule"] == "cosine"


def test_save_refuses(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = ft.Recipe.load(write_recipe({"sft": sft_stage()}))
    path = recipe.save(tmp_path / "mine.yaml")
    text = path.read_text()
    changed = recipe.set("seed=4")
    with pytest.raises(InputError, match="overwrite=True"):
        changed.save(path)
    assert path.read_text() == text
    assert changed.save(path, overwrite=True).read_text() != text
    with pytest.raises(InputError, match="make it first"):
        recipe.save(tmp_path / "nowhere" / "mine.yaml")
    with pytest.raises(InputError, match=r"ends in \.yaml"):
        recipe.save(tmp_path / "mine.txt")
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".part"]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30) | st.sampled_from(
    [
        "2e-4",
        "no",
        "010",
        "~",
        "null",
        "1_000",
        "a: b",
        "# x",
        "- a",
        "'",
        '"',
        "two\nlines\n",
        "  x",
        "true",
        "0x1F",
        "",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts.filter(lambda t: "\n" not in t), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values, max_size=4))
def test_yaml_reads_back_as_it_was(data: dict[str, Any]) -> None:
    document = read_yaml(as_yaml(data))
    assert document.problems == []
    assert (document.value or {}) == data


def test_what_notebooks_hand_over_becomes_plain(tmp_path: Path) -> None:
    import numpy as np

    found = plain({"a": tmp_path / "x", "b": (1, 2), "c": np.float64(0.5), "d": {"e": [Path("y")]}})
    assert found == {"a": str(tmp_path / "x"), "b": [1, 2], "c": 0.5, "d": {"e": ["y"]}}
    assert type(found["c"]) is float
