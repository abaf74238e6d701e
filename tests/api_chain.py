"""One recipe of many kinds, run once by `ft.run` on a two-layer LLaMA made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stage_recipes import (
    PAIRS,
    QUESTIONS,
    dpo_stage,
    reward_stage,
    sft_stage,
    train,
    write_jsonl,
)

import finetune as ft

SAMPLED = {"prompts": [{"path": "questions.jsonl"}], "reward": "helpful", "max_new_tokens": 8}
STAGES: Mapping[str, Any] = {
    "sft": sft_stage(train=train(max_steps=12, learning_rate=0.01), held_out={"fraction": 0.2}),
    "helpful": reward_stage(),
    "best": {"kind": "reject", "policy": "sft", "samples": 2, "unfinished": "keep", **SAMPLED},
    "sft2": sft_stage(data=[{"stage": "best"}], start_from="sft"),
    "ppo": {
        "kind": "ppo",
        "start_from": "sft",
        "rollouts": 8,
        "iterations": 2,
        "sample_every": 1,
        "train": {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.005},
        **SAMPLED,
    },
    "dpo": dpo_stage(start_from="sft"),
}


@dataclass(frozen=True)
class Chain:
    """recipe: of the stages above, run below `runs`. results: what ft.run gave."""

    recipe: ft.Recipe
    runs: Path
    results: ft.Results

    def folder(self, stage: str) -> Path:
        return self.results[stage].folder


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    data = {
        "name": "tiny",
        "model": {"base": tiny_base, "load_in": "fp32", "max_length": 128},
        "adapter": {"rank": 4, "alpha": 8},
        "stages": STAGES,
    }
    recipe = ft.Recipe.from_dict(data, folder)
    return Chain(recipe, folder / "runs", ft.run(recipe, folder / "runs"))
