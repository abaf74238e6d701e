"""Finished runs on a tiny base, trained once for all tests of merging, verifying and exporting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from stage_recipes import PAIRS, QUESTIONS, reward_stage, sft_stage, train, write_jsonl


def run_of(lab: Path, recipe: str, stage: str) -> Path:
    (found,) = (path for path in (lab / "runs" / recipe).glob(f"{stage}-*") if path.is_dir())
    return found


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """runs/quantised (nf4: sft, other, reward) and runs/plain (fp32: sft, other), on a base that is a copy."""
    from finetune.cli.walk import walk

    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(tiny_base, folder / "base")
    (folder / "base" / "LICENSE").write_text("the base's licence\n")
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    write_jsonl(folder / "questions.jsonl", QUESTIONS)
    write_jsonl(folder / "held_out.jsonl", [{"prompt": f"Is it {i}?", "completion": f"Yes, {i}."} for i in range(20)])
    for name, load_in in (("quantised", "nf4"), ("plain", "fp32")):
        stages = {
            "sft": sft_stage(train=train(max_steps=6)),
            "other": sft_stage(train=train(max_steps=6, learning_rate=0.01)),
        }
        if name == "quantised":
            stages["reward"] = reward_stage()
        recipe = {
            "name": name,
            "model": {"base": "base", "load_in": load_in, "max_length": 128},
            "adapter": {"rank": 4, "alpha": 8},
            "stages": stages,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        walk(folder / f"{name}.yaml", (), folder / "runs", kinds=None)
    return folder


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())
