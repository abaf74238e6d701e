"""Every key of a reject stage counts: changing it changes what is sampled, scored or kept. A key without a case here
fails `test_every_key_has_a_case`."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
from reject_lab import PROMPTS, RejectLab, reject_lab
from stage_recipes import write_jsonl

from finetune.errors import InputError
from finetune.recipe.sampling_stages import RejectStage

__all__ = ["reject_lab"]

NUMBER = {"checker": {"kind": "number"}}
REGEX = {"checker": {"kind": "regex", "pattern": "2"}}
KEEP = {"unfinished": "keep"}
PAIRS = {"keep": "pairs", "unfinished": "keep"}
COOL = {**KEEP, "best_n": 4, "temperature": 0.2}
Change = tuple[dict[str, Any], dict[str, Any]]
CASES: dict[str, Change] = {
    "prompts": (KEEP, {**KEEP, "prompts": [{"path": "prompts.jsonl", "take": 5}]}),
    "policy": (KEEP, {**KEEP, "policy": None}),
    "reward": (KEEP, {**KEEP, "reward": "safe"}),
    "safety": (KEEP, {**KEEP, "safety": {"reward": "safe"}}),
    "safety.threshold": (
        {**KEEP, "safety": {"reward": "safe"}},
        {**KEEP, "safety": {"reward": "safe", "threshold": 0.9}},
    ),
    "safety.column": (
        {**KEEP, "safety": {"reward": "safe", "threshold": 0.01}},
        {**KEEP, "safety": {"reward": "safe", "threshold": 0.01, "column": "odd"}},
    ),
    "checker": (KEEP, {**KEEP, **REGEX}),
    "checker.pattern": ({**KEEP, **REGEX}, {**KEEP, "checker": {"kind": "regex", "pattern": "^I"}}),
    "checker.ignore_case": (
        {**KEEP, "checker": {"kind": "regex", "pattern": "IT IS 1"}},
        {**KEEP, "checker": {"kind": "regex", "pattern": "IT IS 1", "ignore_case": True}},
    ),
    "checker.column": ({**KEEP, **NUMBER}, {**KEEP, "checker": {"kind": "number", "column": "other"}}),
    "max_new_tokens": (KEEP, {**KEEP, "max_new_tokens": 3}),
    "top_p": (KEEP, {**KEEP, "top_p": 0.1}),
    "top_k": (KEEP, {**KEEP, "top_k": 1}),
    "samples": (KEEP, {**KEEP, "samples": 8}),
    "temperature": (KEEP, {**KEEP, "temperature": [0.2, 2.0]}),
    "temperature_search": (KEEP, {**KEEP, "temperature_search": {"candidates": [0.1, 0.2], "prompts": 2}}),
    "keep": (KEEP, PAIRS),
    "best_n": (KEEP, {**KEEP, "best_n": 2}),
    "threshold": (KEEP, {**KEEP, "threshold": 0.1}),
    "min_gap": (PAIRS, {**PAIRS, "min_gap": 0.7}),
    "duplicates": (COOL, {**COOL, "duplicates": "keep"}),
    "unfinished": ({"best_n": 4}, {**KEEP, "best_n": 4}),
    "earlier": (KEEP, {**KEEP, "earlier": ["first"]}),
}
ELSEWHERE = {"kind", "engine", "rows_at_once"}
"""engine, rows_at_once: the tests below. Checkers' own keys: test_checkers.py."""


def test_every_key_has_a_case() -> None:
    assert set(RejectStage.model_fields) == {key.partition(".")[0] for key in CASES} | ELSEWHERE


@pytest.fixture(scope="module")
def lab(reject_lab: RejectLab) -> RejectLab:
    write_jsonl(
        reject_lab.folder / "prompts.jsonl",
        [{**row, "other": 3, "odd": not row["safety"]} for row in PROMPTS],
    )
    return reject_lab


def outcome(lab: RejectLab, settings: dict[str, Any]) -> tuple[Any, Any]:
    """(what was kept, every score) of a stage with these settings."""
    stages = {}
    if "earlier" in settings:
        stages["first"] = {**stage(), "checker": {"kind": "finished"}, "unfinished": "keep", "temperature": 2.0}
        del stages["first"]["reward"]
    run = lab.run({**stages, "best": stage(**settings)})
    scores = [[sample["score"] for sample in line["samples"]] for line in run.lines()]
    return run.lines("rows.jsonl"), scores


def stage(**changes: Any) -> dict[str, Any]:
    from reject_lab import reject_stage

    return reject_stage(**{"samples": 4, **changes})


SEEN: dict[str, tuple[Any, Any]] = {}
"""By settings: many cases begin with the same."""


@pytest.mark.parametrize("key", CASES)
def test_a_key_of_a_reject_stage_counts(lab: RejectLab, key: str) -> None:
    found = []
    for settings in CASES[key]:
        name = json.dumps(settings)
        if name not in SEEN:
            SEEN[name] = outcome(lab, settings)
        found.append(SEEN[name])
    (rows, scores), (other_rows, other_scores) = found
    judges = ("reward", "safety", "checker", "safety.threshold", "safety.column")
    assert scores != other_scores if key in judges or key.startswith("checker.") else rows != other_rows


def test_how_many_answers_are_written_side_by_side_changes_nothing(lab: RejectLab) -> None:
    rows = [outcome(lab, {**KEEP, "rows_at_once": count})[0] for count in (16, 5)]
    assert rows[0] == rows[1]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="says what happens where vLLM is absent")
def test_vllm_is_asked_for(lab: RejectLab) -> None:
    with pytest.raises(InputError, match="vLLM is not installed"):
        lab.reject(engine="vllm")


def test_keep_above_keeps_all_from_the_threshold_on(lab: RejectLab) -> None:
    run = lab.reject(keep="above", threshold=-1.0, duplicates="keep", unfinished="keep")
    for line, kept in zip(run.lines(), run.kept(), strict=True):
        good = sorted((s["score"] for s in line["samples"] if s["score"] >= -1.0 and s["text"].strip()), reverse=True)
        assert [sample["score"] for sample in kept] == good
    assert run.manifest()["metrics"]["kept"] == sum(map(len, run.kept())) > 24


def test_a_list_of_temperatures_is_taken_in_turn(lab: RejectLab) -> None:
    run = lab.reject(temperature=[0.5, 1.5, 1.0])
    for line in run.lines():
        assert [sample["temperature"] for sample in line["samples"]] == [0.5, 1.5, 1.0, 0.5]
