"""Recipes as objects: loaded, changed, checked, planned, looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stage_recipes import dpo_stage, sft_stage

import finetune as ft
from finetune.errors import InputError, RecipeError


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> ft.Recipe:
    return ft.Recipe.load(write_recipe({"sft": sft_stage(), "dpo": dpo_stage(start_from="sft")}))


def test_a_change_makes_another_recipe(recipe: ft.Recipe) -> None:
    changed = recipe.set("stages.sft.train.max_steps=7", "seed=3")
    assert changed.loaded.recipe.seed == 3 and recipe.loaded.recipe.seed == 17
    assert changed.loaded.overrides == ("stages.sft.train.max_steps=7", "seed=3"), "recorded in the manifest"
    assert changed.set("seed=4").to_dict()["stages"]["sft"]["train"]["max_steps"] == 7
    assert changed != recipe and changed.set("seed=17", "stages.sft.train.max_steps=2") == recipe
    with pytest.raises(AttributeError):
        recipe.loaded = changed.loaded
    recipe.to_dict()["stages"].clear()
    assert recipe.to_dict()["stages"], "what to_dict gives is a copy"


def test_with_merges_sections(recipe: ft.Recipe) -> None:
    changed = recipe.with_(model={"max_length": 64}, stages={"sft": {"data": [{"path": "judged.jsonl"}]}})
    found = changed.to_dict()
    assert found["model"]["max_length"] == 64 and found["model"]["load_in"] == "fp32"
    assert found["stages"]["sft"]["data"] == [{"path": "judged.jsonl"}]
    assert changed.stages == ("sft", "dpo") == recipe.stages
    assert recipe.to_dict()["model"]["max_length"] == 128


def test_a_dict_and_a_file_are_the_same_recipe(recipe: ft.Recipe, tmp_path: Path) -> None:
    again = ft.Recipe.from_dict(recipe.to_dict(), tmp_path)
    assert again == recipe
    assert [row["folder"] for row in again.plan().rows] == [row["folder"] for row in recipe.plan().rows]


def test_what_is_wrong_is_told_with_its_line(recipe: ft.Recipe, write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: stages.sft.trian: unknown key \(did you mean 'train'"):
        ft.Recipe.load(write_recipe({"sft": {**sft_stage(), "trian": {}}}))
    with pytest.raises(RecipeError, match="did you mean"):
        recipe.set("stages.sft.train.epoch=1")
    with pytest.raises(RecipeError, match=r"gone\.jsonl"):
        recipe.with_(stages={"sft": {"data": [{"path": "gone.jsonl"}]}}).check()


def test_plan(recipe: ft.Recipe, tmp_path: Path) -> None:
    plan = recipe.plan(tmp_path / "runs")
    assert [(row["stage"], row["reads"], row["state"], row["why"]) for row in plan.rows] == [
        ("sft", [], "to do", ["never run"]),
        ("dpo", ["sft"], "to do", ["never run"]),
    ]
    assert not plan.done and plan.rows[0]["memory_gib"] > 0 and plan.rows[0]["seconds"] is None
    assert list(plan.frame()["stage"]) == ["sft", "dpo"]
    assert "dpo (dpo, reads sft): to do, up to" in repr(plan)
    assert "never run" in plan._repr_html_()
    assert not (tmp_path / "runs").exists(), "planning writes nothing"


def test_inspect_shows_what_is_trained(recipe: ft.Recipe) -> None:
    found = recipe.inspect("sft", rows=2)
    [first, second] = found.rows
    assert (first.number, second.number) == (0, 1) and first.where == "questions.jsonl:1"
    assert first.trained == sum(first.parts[0].trained) > 0 and first.tokens == len(first.parts[0].ids)
    text = repr(found)
    assert "⟦It is 0.<|eot_id|>⟧" in text and "What is 0?" in text
    assert text.count("⟦") == text.count("⟧") == 3, "one in each row, and one in the legend"
    assert sum(count for _, _, count in found.lengths) == 23, "of 24 rows one is held out"
    page = found._repr_html_()
    assert 'background:var(--ft-after);border-radius:2px">It is 0.</span>' in page
    assert '<span class="ft-quiet" style="">' in page


def test_inspect_comparisons_and_what_is_left_out(recipe: ft.Recipe) -> None:
    found = recipe.set("model.max_length=31").inspect("dpo", rows=1)
    [row] = found.rows
    assert [part.name for part in row.parts] == ["prompt", "chosen", "rejected"]
    assert "margin 0, rating significantly better" in repr(found)
    assert found.left_out and all(rows > 0 and first for rows, first in found.left_out.values())
    assert "left out because" in found._repr_html_()


def test_inspect_tells_what_it_cannot(recipe: ft.Recipe) -> None:
    assert recipe.inspect().stage == "sft", "the first with data"
    with pytest.raises(InputError, match=r"no stage 'sff' with data; it has sft, dpo"):
        recipe.inspect("sff")


def test_text_of_a_user_is_escaped(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    recipe = ft.Recipe.load(write_recipe({"sft": sft_stage()}, {"model.system": evil}))
    for page in (recipe._repr_html_(), recipe.inspect("sft", rows=1)._repr_html_()):
        assert "&lt;script&gt;" in page and evil not in page


def test_what_is_shown(recipe: ft.Recipe) -> None:
    assert repr(recipe).startswith("Recipe tiny on ") and "sft (sft), dpo (dpo)" in repr(recipe)
    assert '<span style="color:var(--ft-1)">max_steps</span>: 2' in recipe._repr_html_()
    assert "max_steps: 2" in str(recipe)
