"""Every key of a reward or dpo stage counts: changing it changes the weights, or what is said. A key without a case
here fails `test_every_key_has_a_case`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from stage_recipes import Finished, Walk, dpo_stage, reward_stage, train

from finetune.recipe.learning_stages import DpoStage, RewardStage

STEPS = train(max_steps=2, batch_size=8, micro_batch_size=4)
Change = tuple[dict[str, Any], dict[str, Any]]
"""Two settings of a stage that must not end in the same weights."""

SHARED: dict[str, Change] = {
    "data": ({}, {"data": [{"path": "ranked.jsonl"}]}),
    "start_from": ({}, {"start_from": "sft"}),
    "held_out": ({}, {"held_out": {"fraction": 0.5}}),
    "ranked": ({"data": [{"path": "ranked.jsonl"}]}, {"data": [{"path": "ranked.jsonl"}], "ranked": "top"}),
    "train": ({}, {"train": {**STEPS, "learning_rate": 0.01}}),
    "engine": ({}, {"engine": "trl"}),
}
REWARD: dict[str, Change] = {
    **SHARED,
    "margin": ({}, {"margin": "column"}),
    "centring": ({}, {"centring": 0.5}),
}
DPO: dict[str, Change] = {
    **SHARED,
    "loss": ({}, {"loss": "hinge"}),
    "beta": ({}, {"beta": 0.5}),
    "label_smoothing": ({"loss": "robust"}, {"loss": "robust", "label_smoothing": 0.2}),
    "simpo_margin": ({"loss": "simpo"}, {"loss": "simpo", "simpo_margin": 5.0}),
    "kto_weights": (
        {"loss": "kto", "data": [{"path": "judged.jsonl"}]},
        {"loss": "kto", "data": [{"path": "judged.jsonl"}], "kto_weights": [1.0, 3.0]},
    ),
    "nll_weight": ({}, {"nll_weight": 0.5}),
    "mask_format_tokens": ({}, {"mask_format_tokens": True}),
}
ELSEWHERE = {"kind", "too_long", "duplicates", "slices", "reference"}
"""Keys whose effect is not on the weights: the tests below, and test_dpo_stage.py for `reference`."""


def test_every_key_has_a_case() -> None:
    assert set(RewardStage.model_fields) - {"reference"} == (REWARD.keys() | ELSEWHERE) - {"reference"}
    assert set(DpoStage.model_fields) == (DPO.keys() | ELSEWHERE) - {"slices"}


def finish(walk: Walk, name: str, make: Callable[..., dict[str, Any]], changes: dict[str, Any], runs: str) -> Finished:
    stages: dict[str, Any] = {}
    if changes.get("start_from") == "sft":
        questions = [{"path": "questions.jsonl"}]
        stages["sft"] = {"kind": "sft", "data": questions, "train": train(max_steps=2)}
    stages[name] = make(**{"train": STEPS, **changes})
    return walk(stages, runs=runs)


@pytest.mark.parametrize("key", REWARD)
def test_a_key_of_a_reward_stage_counts(walk: Walk, key: str) -> None:
    one, other = (finish(walk, "reward", reward_stage, changes, f"runs{i}") for i, changes in enumerate(REWARD[key]))
    assert one.weights("reward") != other.weights("reward")


@pytest.mark.parametrize("key", DPO)
def test_a_key_of_a_dpo_stage_counts(walk: Walk, key: str) -> None:
    one, other = (finish(walk, "dpo", dpo_stage, changes, f"runs{i}") for i, changes in enumerate(DPO[key]))
    assert one.weights("dpo") != other.weights("dpo")


def test_too_long_drops_or_stops(walk: Walk) -> None:
    from finetune.errors import InputError

    short = {"model.max_length": 36}
    done = walk({"reward": reward_stage(train=STEPS)}, short)
    assert "longer than max_length" in done.said
    with pytest.raises(InputError, match="max_length"):
        walk({"reward": reward_stage(train=STEPS, too_long="error")}, short, runs="other")


def test_duplicates_are_kept_or_dropped(walk: Walk) -> None:
    twice = [{"path": "pairs.jsonl"}, {"path": "pairs.jsonl"}]
    kept = walk({"dpo": dpo_stage(train=STEPS, data=twice)}).manifest("dpo")["data"]
    dropped = walk({"dpo": dpo_stage(train=STEPS, data=twice, duplicates="drop")}, runs="other").manifest("dpo")["data"]
    assert kept["duplicates"] == dropped["duplicates"] == 40
    assert kept["train_rows"] == 2 * dropped["train_rows"]


def test_slices_are_reported(walk: Walk) -> None:
    report = walk({"reward": reward_stage(train=STEPS, slices=["topic"])}).manifest("reward")["held_out_report"]
    assert set(report["by_slice"]["topic"]) == {"odd", "even"}
