"""Finished runs of one recipe, to measure: sft, a reward model, and dpo, on a two-layer LLaMA made on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from stage_recipes import PAIRS, QUESTIONS, dpo_stage, reward_stage, sft_stage, tiny_base, train, write_jsonl

__all__ = ["tiny_base"]


@dataclass(frozen=True)
class Lab:
    """folder: with recipe.yaml, its data files and runs/lab."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self, stage: str) -> Path:
        (found,) = (self.runs / "lab").glob(f"{stage}-*")
        return found


@pytest.fixture(scope="session")
def lab(tmp_path_factory, tiny_base) -> Lab:
    from finetune.cli.walk import walk

    folder = tmp_path_factory.mktemp("lab")
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    recipe = {
        "name": "lab",
        "model": {"base": str(tiny_base), "load_in": "fp32", "max_length": 128},
        "adapter": {"rank": 4, "alpha": 8},
        "stages": {
            "sft": sft_stage(held_out={"fraction": 0.25}, train=train(max_steps=12, learning_rate=0.02)),
            "reward": reward_stage(),
            "dpo": dpo_stage(start_from="sft", held_out={"fraction": 0.2}),
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    walk(folder / "recipe.yaml", (), folder / "runs", kinds=None)
    return Lab(folder)
