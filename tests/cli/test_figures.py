"""What is said of a stage's results, whatever its kind reports."""

from __future__ import annotations

import pytest

from finetune.cli.figures import lines, main_figures, summary_table

TRAINED = {
    "steps": 4, "stopped_early": False, "unit": "trained tokens", "tokens": 1000, "units": 600, "seconds": 2.0,
    "first_held_out": 2.0, "held_out": 1.0, "best_held_out": 0.9, "best_step": 3, "measurements_since_best": 1,
    "first_loss": 2.5, "last_loss": 1.25, "last": {}, "held_out_metrics": {}, "first_held_out_metrics": {},
}  # fmt: skip
JUDGED = {**TRAINED, "first_held_out_metrics": {"accuracy": 0.5}, "held_out_metrics": {"accuracy": 0.75, "gap": 1.5}}
PPO = {
    **TRAINED, "first_held_out": None, "held_out": None, "best_held_out": None, "iterations": 2,
    "reward_first": 0.1, "reward_last": 0.5, "kl_first": 0.0, "kl_last": 0.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "metrics", "text"),
    [
        ("sft", TRAINED, "loss 2.5000 -> 1.2500, held out 2.0000 -> 1.0000"),
        ("reward", JUDGED, "loss 2.5000 -> 1.2500, held out 2.0000 -> 1.0000, accuracy 0.500 -> 0.750"),
        ("dpo", {**TRAINED, "held_out": None}, "loss 2.5000 -> 1.2500"),
        ("ppo", PPO, "reward 0.100 -> 0.500, KL 0.000 -> 0.200"),
        (
            "ppo",
            {
                **PPO, "held_out_reward_before": 0.2, "held_out_reward_after": 0.6,
                "held_out_kl_before": 0.0, "held_out_kl_after": 0.3,
            },
            "held-out reward 0.200 -> 0.600, held-out KL 0.000 -> 0.300",
        ),
        (
            "reject",
            {"score": 0.1, "kept": 1200, "kept_score": 0.5, "best_of": {"1": 0.1, "2": 0.3, "16": 0.55}},
            "best of 1 0.100, best of 16 0.550, kept 1,200 with 0.500",
        ),
        ("reject", {"score": 0.1, "kept": 0, "best_of": {"1": 0.1}}, "best of 1 0.100"),
        ("average", {"adapters": 2, "rank": 8, "distance": 0.25}, "adapters 2, rank 8, distance 0.2500"),
        ("average", {}, ""),
    ],
)  # fmt: skip
def test_the_main_figures_of_each_kind(kind: str, metrics: dict[str, object], text: str) -> None:
    assert main_figures(kind, {"metrics": metrics}) == text


def test_every_metric_is_shown_and_none_has_to_be_there() -> None:
    assert lines({}) == []
    assert lines(TRAINED) == [
        "steps       4",
        "loss        2.5000 at the first step, 1.2500 at the last",
        "held out    2.0000 before, 1.0000 after, best 0.9000 at step 3",
        "seen        1,000 tokens, 500 a second; 600 trained tokens",
    ]
    assert lines({**JUDGED, "stopped_early": True})[0] == "steps       4, stopped early"
    assert lines(JUDGED)[-1] == "held out    accuracy 0.7500, gap 1.5000"
    assert lines(PPO)[-3:] == [
        "iterations  2",
        "reward      0.1000 -> 0.5000",
        "kl          0.0000 -> 0.2000",
    ]
    assert lines(
        {"best_of_k": {"1": 0.1, "4": 0.5}, "prompts": 12, "temperatures": [1.0, 1.2], "lost": {}, "note": "x"}
    ) == [
        "best_of_k   1 0.1000, 4 0.5000",
        "prompts     12",
        "temperatures 1.0000, 1.2000",
        "note        x",
    ]


def test_the_summary_is_a_table_that_markdown_reads() -> None:
    table = summary_table(
        [("sft", "sft", "done", 65.0, "loss 2 -> 1"), ("best", "reject", "done before", None, "")], 70.0
    )
    assert table.splitlines() == [
        "| stage | kind   | state       | time | figures     |",
        "|-------|--------|-------------|------|-------------|",
        "| sft   | sft    | done        | 1:05 | loss 2 -> 1 |",
        "| best  | reject | done before |      |             |",
        "",
        "this walk took 1:10",
    ]
