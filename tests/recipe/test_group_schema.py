"""What editors are told about recipes, by a validator of JSON schemas that is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finetune.recipe.json_schema import SCHEMA_PATH
from finetune.recipe.positions import read_yaml

HEAD = "name: x\nmodel: {base: org/model}\nstages:\n  sft: {kind: sft, data: [{path: d}]}\n"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_recipe_of_the_project_is_valid_for_editors(validator: Any, root: Path) -> None:
    recipes = sorted((root / "recipes").rglob("*.yaml"))
    assert len(recipes) >= 6
    for path in recipes:
        errors = [error.message for error in validator.iter_errors(read_yaml(path.read_text(encoding="utf-8")).value)]
        assert errors == [], path.name


GROUP = """\
  loop:
    repeat: 2
    stages:
      helpful: {kind: reward, start_from: {first: sft, then: ppo}, data: [{path: {round: [a, b]}, rounds: all}]}
      best:
        kind: reject
        policy: {first: null, then: ppo}
        reward: helpful
        safety: {reward: {first: helpful, then: helpful}, threshold: {round: [0.1, 0.2]}}
        prompts: {round: [[{path: a}], [{path: b}]]}
        earlier: all
        temperature: {round: [1.0, [1.2, 1.3]]}
      sft2: {kind: sft, data: [{path: d}, {stage: best, rounds: earlier}], train: {epochs: {round: [1, 2]}}}
      ppo: {kind: ppo, start_from: sft2, reward: helpful, prompts: [{stage: {first: best, then: best}}]}
      mean: {kind: average, of: [ppo, {first: sft, then: mean}]}
  last: {kind: dpo, start_from: mean, data: [{stage: best, rounds: all}]}
"""


def test_a_group_is_valid(validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(read_yaml(HEAD + GROUP).value)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("repeat: 2", "repeat: 0"),
        ("repeat: 2", "repeet: 2"),
        ("kind: reward", "kind: rewrd"),
        ("reward: helpful\n", "rewrd: helpful\n"),
        ("epochs: {round: [1, 2]}", "epochs: many"),
        ("epochs: {round: [1, 2]}", "epochs: {rounds: [1, 2]}"),
        ("{first: sft, then: ppo}", "{first: sft}"),
        ("{first: sft, then: ppo}", "{first: sft, than: ppo}"),
        ("rounds: earlier", "rounds: later"),
        ("earlier: all", "earlier: each"),
        ("policy: {first: null, then: ppo}", "policy: {first: 3, then: ppo}"),
        ("kind: dpo, start_from: mean", "kind: dpo, start_from: {first: sft, then: mean}"),
        ("kind: dpo", "kind: dpo, beta: {round: [1, 2]}"),
    ],
)
def test_what_is_no_group_is_underlined(validator: Any, old: str, new: str) -> None:
    assert old in GROUP
    assert not validator.is_valid(read_yaml(HEAD + GROUP.replace(old, new, 1)).value)
