"""Which stages a command is about, and how long they will take where that can be known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import InputError
from finetune.plan.choose import choose
from finetune.plan.manifest import write_manifest
from finetune.plan.pace import Pace, work_of
from finetune.plan.plan import Plan, make_plan
from finetune.recipe.load import recipe_from_dict

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "intermediate_size": 128,
}  # fmt: skip
ROWS = [{"path": "rows.jsonl"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return tmp_path


def planned(folder: Path, stages: dict[str, Any] | None = None) -> Plan:
    usual = {
        "sft": {"kind": "sft", "data": ROWS},
        "helpful": {"kind": "reward", "start_from": "sft", "data": ROWS},
        "best.1": {"kind": "reject", "policy": "sft", "reward": "helpful", "prompts": ROWS},
        "dpo.1": {"kind": "dpo", "start_from": "sft", "data": ROWS},
        "ppo.1": {"kind": "ppo", "start_from": "sft", "reward": "helpful", "prompts": ROWS},
    }
    recipe = {"name": "chat", "model": {"base": "base"}, "stages": stages or usual}
    return make_plan(recipe_from_dict(recipe, folder), folder / "runs")


def names(plan: Plan, **options: Any) -> list[str]:
    return [stage.name for stage in choose(plan, **options)]


def done(plan: Plan, *stages: str, seconds: float = 0.0, metrics: dict[str, Any] | None = None) -> None:
    for name in stages:
        plan.stage(name).folder.mkdir(parents=True)
        write_manifest(plan.stage(name).folder, {"files": {}, "seconds": seconds, "metrics": metrics or {}})


def test_all_until_and_kinds(folder: Path) -> None:
    plan = planned(folder)
    assert names(plan) == ["sft", "helpful", "best.1", "dpo.1", "ppo.1"]
    assert names(plan, until="best.1") == ["sft", "helpful", "best.1"]
    assert names(plan, kinds={"dpo"}) == ["sft", "dpo.1"], "up to there, and only what it reads"
    assert names(plan, kinds={"reject"}) == ["sft", "helpful", "best.1"]
    assert names(plan, kinds={"ppo"}) == ["sft", "helpful", "ppo.1"]


def test_from_needs_everything_above(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--from best\.1: sft, helpful above it are not done"):
        choose(planned(folder), begin="best.1")
    done(planned(folder), "sft")
    with pytest.raises(InputError, match=r"--from best\.1: helpful above it is not done"):
        choose(planned(folder), begin="best.1")
    done(planned(folder), "helpful")
    plan = planned(folder)
    assert names(plan, begin="best.1") == ["best.1", "dpo.1", "ppo.1"]
    assert names(plan, begin="best.1", until="dpo.1") == ["best.1", "dpo.1"]
    assert names(plan, begin="sft", until="sft") == ["sft"]
    with pytest.raises(InputError, match=r"--from dpo\.1 comes after --until helpful"):
        choose(plan, begin="dpo.1", until="helpful")


@pytest.mark.parametrize("option", ["until", "begin"])
def test_an_unknown_name_is_told_with_what_was_meant(folder: Path, option: str) -> None:
    shown = "--until" if option == "until" else "--from"
    with pytest.raises(InputError, match=rf"{shown}: the recipe has no stage 'ppo\.2'; did you mean 'ppo\.1'\?"):
        choose(planned(folder), **{option: "ppo.2"})
    with pytest.raises(InputError, match=r"no stage 'xyz'; it has sft, helpful, best\.1, dpo\.1, ppo\.1"):
        choose(planned(folder), **{option: "xyz"})


def steps(count: int, **changes: Any) -> dict[str, Any]:
    return {"kind": "sft", "data": ROWS, "train": {"max_steps": count, **changes}}


def test_time_is_known_from_a_stage_of_the_same_work(folder: Path) -> None:
    stages = {
        "a": steps(10),
        "b": steps(30),
        "longer rows": steps(30, batch_size=32),
        "by epochs": {"kind": "sft", "data": ROWS},
    }
    plan = planned(folder, {name.replace(" ", "-"): stage for name, stage in stages.items()})
    assert Pace.of(plan).expected(plan.stages[1].settings) is None, "nothing is done yet"
    done(plan, "a", seconds=20.0)
    plan = planned(folder, {name.replace(" ", "-"): stage for name, stage in stages.items()})
    pace = Pace.of(plan)
    assert pace.expected(plan.stage("b").settings) == 60.0, "2 seconds a step"
    assert pace.expected(plan.stage("longer-rows").settings) is None, "other batches: not known"
    assert pace.expected(plan.stage("by-epochs").settings) is None


def test_rounds_are_alike_whatever_they_read(folder: Path) -> None:
    def best(policy: str) -> dict[str, Any]:
        return {"kind": "reject", "policy": policy, "checker": {"kind": "json"}, "prompts": ROWS}

    def again(source: str) -> dict[str, Any]:
        return {"kind": "sft", "data": [{"stage": source}]}

    stages = {
        "sft": {"kind": "sft", "data": ROWS},
        "best.1": best("sft"), "sft2.1": again("best.1"),
        "best.2": best("sft2.1"), "sft2.2": again("best.2"),
    }  # fmt: skip
    plan = planned(folder, stages)
    work = {stage.name: work_of(stage.settings) for stage in plan.stages}
    assert work["best.1"] == work["best.2"]
    assert work["sft2.1"] == work["sft2.2"] != work["sft"]


def test_iterations_of_ppo_are_its_length(folder: Path) -> None:
    ppo = {"kind": "ppo", "checker": {"kind": "json"}, "prompts": ROWS}
    plan = planned(folder, {"short": {**ppo, "iterations": 2}, "long": {**ppo, "iterations": 10}})
    done(plan, "short", seconds=1.0, metrics={"seconds": 8.0})
    pace = Pace.of(planned(folder, {"short": {**ppo, "iterations": 2}}))
    assert pace.expected(plan.stage("long").settings) == 40.0, "a resumed run's sessions count together"
