"""Several stages in one process, on one base: the same files as each stage by itself, and the base loaded once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from stage_recipes import Walk, dpo_stage, reward_stage, sft_stage, train, walk, write_recipe

from finetune.model import base as base_module

__all__ = ["walk", "write_recipe"]

STAGES = {
    "sft": sft_stage(),
    "checkpointed": sft_stage(start_from="sft", train=train(max_steps=2, gradient_checkpointing=True)),
    "helpful": reward_stage(start_from="sft", train=train(max_steps=2)),
    "dpo": dpo_stage(start_from="checkpointed", train=train(max_steps=2)),
    "fresh": sft_stage(data=[{"path": "questions.jsonl", "take": 20}]),
}


SAMPLED = {"prompts": [{"path": "questions.jsonl", "take": 6}], "max_new_tokens": 5}
WHOLE = {
    "sft": STAGES["sft"],
    "helpful": STAGES["helpful"],
    "best": {"kind": "reject", "policy": "sft", "reward": "helpful", "samples": 4, "unfinished": "keep", **SAMPLED},
    "sft2": sft_stage(data=[{"stage": "best"}], held_out={"fraction": 0}),
    "ppo": {
        **{"kind": "ppo", "start_from": "sft2", "reward": "helpful", "held_out": {"fraction": 0.3}, **SAMPLED},
        **{"rollouts": 8, "iterations": 1, "train": {"batch_size": 4, "micro_batch_size": 2}},
    },
    "dpo": dpo_stage(start_from="sft2", train=train(max_steps=1)),
    "mean": {"kind": "average", "of": ["ppo", "dpo"]},
    "more": sft_stage(start_from="mean", train=train(max_steps=1)),
}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each base was held that was loaded."""
    seen: list[str] = []
    load = base_module.load_base

    def counted(folder: Path, precision: Any, device: Any) -> Any:
        seen.append(precision.load_in)
        return load(folder, precision, device)

    monkeypatch.setattr(base_module, "load_base", counted)
    return seen


def results(folders: Mapping[str, Path], runs: Path | None = None) -> dict[str, Any]:
    """Hashes of all that a stage writes but its times, and what it proves. runs: look for the same stages there."""
    found = {}
    for name, made in folders.items():
        folder = made if runs is None else runs / made.parent.name / made.name
        manifest = json.loads((folder / "manifest.json").read_text())
        hashes = {file: entry["sha256"] for file, entry in manifest["files"].items() if file != "metrics.jsonl"}
        clocks = {"seconds", "tokens_per_second"}
        metrics = {key: value for key, value in manifest["metrics"].items() if key not in clocks}
        found[name] = (hashes, metrics, manifest["proof"])
    return found


@pytest.mark.parametrize(
    ("stages", "changes"),
    [
        (STAGES, {"model.load_in": "nf4", "adapter.dropout": 0.1}),
        (STAGES, {"adapter.dora": True, "adapter.modules_to_save": ["lm_head"]}),
        pytest.param(WHOLE, {"model.load_in": "nf4"}, marks=pytest.mark.slow),
    ],
    ids=["nf4", "dora, head", "all kinds"],
)
def test_a_chain_in_one_process_is_each_stage_by_itself(
    walk: Walk,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    loads: list[str],
    stages: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> None:
    from finetune.execute import run_recipe
    from finetune.recipe.load import load_recipe

    together = walk(stages, changes, runs="together")
    assert len(loads) == 1, "one base for the whole chain"
    loaded = load_recipe(write_recipe(stages, changes))
    for name in stages:
        run_recipe(loaded, tmp_path / "apart", lambda line: None, begin=name, until=name)
    assert len(loads) == 1 + len(stages)
    assert results(together.folders, tmp_path / "apart") == results(together.folders)


def test_what_changes_the_base_is_not_handed_on(
    walk: Walk, write_recipe: Callable[..., Path], tmp_path: Path, loads: list[str]
) -> None:
    from finetune.execute import run_recipe
    from finetune.recipe.load import load_recipe

    stages = {name: STAGES[name] for name in ("sft", "helpful", "fresh")}
    together = walk(stages, {"adapter.init": "pissa"}, runs="together")
    loaded = load_recipe(write_recipe(stages, {"adapter.init": "pissa"}))
    for name in stages:
        run_recipe(loaded, tmp_path / "apart", lambda line: None, begin=name, until=name)
    assert results(together.folders, tmp_path / "apart") == results(together.folders)


@pytest.mark.slow
def test_a_process_of_its_own_gives_the_same(
    walk: Walk, tmp_path: Path, command: list[str], subprocess_env: dict[str, str]
) -> None:
    """Nothing depends on what differs from process to process, such as the order of sets."""
    together = walk({"sft": STAGES["sft"]}, {"model.load_in": "nf4"}, runs="together")
    line = [*command, "sft", "recipe.yaml", "--runs", "apart"]
    subprocess.run(line, cwd=tmp_path, env=subprocess_env, check=True, capture_output=True, timeout=300)
    assert results(together.folders, tmp_path / "apart") == results(together.folders)


def test_after_trl_the_base_is_loaded_anew(walk: Walk, loads: list[str]) -> None:
    pytest.importorskip("trl", reason="needs finetune[trl]")
    stages = {"sft": sft_stage(engine="trl"), "fresh": sft_stage(data=[{"path": "questions.jsonl", "take": 20}])}
    both = walk(stages)
    assert len(loads) == 2
    alone = walk({"fresh": stages["fresh"]}, runs="alone")
    assert alone.weights("fresh") == both.weights("fresh")
