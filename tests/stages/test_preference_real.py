"""Real preference data on real weights: reward models and DPO train, prove themselves and score, in nf4 and fp32.

A vocabulary of 512 words makes long rows of ordinary text: with the 512 positions of these weights hardly a row of
dpo_en.json would be left. RoPE goes on beyond them, and what is shown here is the way of the data, so max_length is
1536; the command says so when rows go beyond the positions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from stage_recipes import dpo_stage, reward_stage, train

from finetune.cli.main import main

MODEL = {"template": "vicuna", "max_length": 1536}


@dataclass(frozen=True)
class Real:
    """kinds: stages that read the file. used: of the 60 rows taken, at least so many comparisons are trained on."""

    file: str
    used: int
    kinds: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)


FILES = [
    Real("dpo_en.json", 15, ("reward", "dpo")),
    Real("hh_rlhf_harmless.jsonl", 30, ("reward", "dpo"), {"reward": {"slices": []}}),
    Real("oasst_trees.jsonl", 30, ("reward",), {"reward": {"ranked": "top"}}),
    Real("alpaca_eval_judged.jsonl", 15, ("reward", "dpo"), {"reward": {"slices": ["dataset"]}}),
    Real("kto_en.json", 20, ("kto",)),
]


@pytest.mark.slow
@pytest.mark.parametrize("load_in", ["nf4", "fp32"])
@pytest.mark.parametrize("real", FILES, ids=lambda real: real.file)
def test_real_data(walk, shared, tmp_path, capsys, real, load_in):
    common = {
        "data": [{"path": str(shared / "data" / real.file), "take": 60}],
        "held_out": {"fraction": 0.2, "max_rows": 6},
        "train": train(max_steps=2, batch_size=3, micro_batch_size=3, eval_every=100),
    }
    makes = {
        "reward": lambda: reward_stage(**common, **real.changes.get("reward", {})),
        "dpo": lambda: dpo_stage(**common, mask_format_tokens=True, nll_weight=0.2),
        "kto": lambda: dpo_stage(**common, loss="kto"),
    }
    changes = {f"model.{key}": value for key, value in MODEL.items()}
    base = str(shared / "models" / "stories260K")
    done = walk({kind: makes[kind]() for kind in real.kinds}, {**changes, "model.base": base, "model.load_in": load_in})
    for kind in real.kinds:
        manifest = done.manifest(kind)
        assert manifest["data"]["train_rows"] >= real.used, manifest["data"]
        assert manifest["proof"]["max_abs_difference"] == 0
        metrics = manifest["metrics"]
        assert metrics["steps"] == 2 and all(math.isfinite(metrics[name]) for name in ("last_loss", "held_out"))
        if kind == "dpo":
            nll = metrics["first_held_out_metrics"]["nll"]
            assert metrics["first_held_out"] == pytest.approx(math.log(2) + 0.2 * nll, rel=1e-5)
        if kind == "kto":
            assert metrics["first_held_out"] == pytest.approx(0.5, abs=1e-6)
        if kind == "reward":
            report = manifest["held_out_report"]
            assert report["pairs"] >= 4 and report["accuracy"] <= 1 and report["calibration"]["ece"] < 1
            assert all(len(values) > 0 for values in report["by_slice"].values())
            out = tmp_path / "scores.jsonl"
            few = tmp_path / f"few.{real.file.rpartition('.')[2]}"
            text = (shared / "data" / real.file).read_text(encoding="utf-8")
            rows = json.loads(text)[:3] if few.suffix == ".json" else text.splitlines(keepends=True)[:3]
            few.write_text(json.dumps(rows) if few.suffix == ".json" else "".join(rows), encoding="utf-8")
            folder = str(done.folders["reward"])
            assert main(["eval", folder, "--data", str(few), "--out", str(out)]) == 0
            scored = [json.loads(line) for line in out.read_text().splitlines()]
            assert scored and all(math.isfinite(score) for row in scored for score in row["scores"])
            assert "accuracy" in capsys.readouterr().out
