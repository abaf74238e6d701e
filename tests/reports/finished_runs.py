"""Finished runs of every kind, made by hand: manifests, logs and samples as the stages write them, with odd texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from release.made_runs import make_base, make_run, source

from finetune.reports.calibration import ScoredPairs, reward_report
from finetune.reports.pictures import reward_pictures

NASTY = "<script>alert(1)</script> & \u202e \x07"
"""A text that must not get through as HTML."""


def jsonl(lines: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def log(steps: int, **values: float) -> bytes:
    """metrics.jsonl of so many steps: loss falls to nothing, held out before and after."""
    lines: list[dict[str, Any]] = [{"step": 0, "held_out_loss": 3.0}]
    for step in range(1, steps + 1):
        usual = {"loss": 3 / step, "learning_rate": 1e-3 / step, "tokens_per_second": 900.0 + step, "memory_gib": 1.5}
        lines.append({"step": step, "epoch": step / steps, **usual, **values})
    return jsonl([*lines, {"step": steps, "held_out_loss": 0.5}])


def data(**more: Any) -> dict[str, Any]:
    return {
        "sources": [source("demo.jsonl")],
        "held_out_sources": [source("held_out.jsonl", used=4)],
        "rows": 24, "duplicates": 2, "dropped": {"longer than 64 tokens": {"rows": 3, "first": ["demo.jsonl:7 (80)"]}},
        "truncated": 0, "train_rows": 17, "held_out_rows": 4, "epoch_rows": 17, "tokens": 900, "trained_tokens": 225,
        "lengths": {"edges": [0, 16, 32, 64], "counts": [0, 5, 12], "longest": 60},
        **more,
    }  # fmt: skip


def sft_run(runs: Path, base: Path, stage: str = "sft", **more: Any) -> Path:
    metrics = {"steps": 8, "tokens": 900, "seconds": 3.0, "first_held_out": 3.0, "held_out": 0.5, "first_loss": 3.0}
    files = {"adapter_config.json": b"{}", "metrics.jsonl": log(8), **more.pop("files", {})}
    about = {"data": data(), "metrics": metrics, "settings": {"kind": "sft", "start_from": None, "epochs": 2.0}, **more}
    return whole_run(runs, base, stage, "sft", files=files, **about)


def whole_run(runs: Path, base: Path, stage: str, kind: str, **more: Any) -> Path:
    """A run whose manifest holds its stage's settings, as those of this version do."""
    folder = make_run(runs, base, stage, kind, **more)
    manifest = json.loads((folder / "manifest.json").read_text())
    settings = {"kind": kind, **(more.get("settings") or {})}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "settings": settings}))
    return folder


@cache
def judged() -> tuple[dict[str, Any], dict[str, bytes]]:
    """A reward model's report of 40 pairs, and its pictures."""
    random = np.random.default_rng(3)
    pairs = ScoredPairs(
        random.normal(1, 1, 40), random.normal(0, 1, 40), random.integers(1, 90, 40), random.integers(1, 90, 40),
        ratings=["better", "slightly_better"] * 20, slices={"topic": ["odd", NASTY] * 20},
    )  # fmt: skip
    report = reward_report(pairs)
    return report, reward_pictures(pairs, report)


def reward_run(runs: Path, base: Path, sft: Path) -> Path:
    report, pictures = judged()
    lines = [{"step": n, "loss": 1 / n, "accuracy": 0.5 + n / 20, "gap": float(n)} for n in range(1, 9)]
    return whole_run(
        runs, base, "helpful", "reward", inputs={"sft": sft}, held_out_report=report, data=data(),
        settings={"kind": "reward", "start_from": "sft"},
        metrics={"steps": 8, "held_out_metrics": {"accuracy": 0.8}, "first_held_out_metrics": {"accuracy": 0.5}},
        files={"metrics.jsonl": jsonl(lines), "adapter_config.json": b"{}", **pictures},
    )  # fmt: skip


def reject_run(runs: Path, base: Path, sft: Path, helpful: Path) -> Path:
    samples = [
        {"prompt": [{"role": "user", "content": f"Ask {n} {NASTY}"}],
         "samples": [{"text": f"good {n}", "score": 2.0, "kept": 0}, {"text": f"poor {n}", "score": -1.0}]}
        for n in range(9)
    ]  # fmt: skip
    kept = [{"messages": [{"role": "user", "content": f"Ask {n}"}, {"role": "assistant", "content": f"good {n}"}]}
            for n in range(9)]  # fmt: skip
    metrics = {
        "prompts": 9, "samples": 18, "finished": 0.9, "kept": 9, "kept_score": 2.0, "lost": {"duplicate": 1},
        "best_of": {"1": 0.5, "2": 2.0}, "best_of_error": {"1": 0.1, "2": 0.1}, "kl_bound": {"1": 0.0, "2": 0.19},
    }  # fmt: skip
    lines = [{"step": n, "score": 0.5, "best": 2.0 + n, "tokens_per_second": 50.0 + n} for n in (1, 2)]
    return whole_run(
        runs, base, "best", "reject", inputs={"sft": sft, "helpful": helpful}, metrics=metrics,
        settings={"kind": "reject", "policy": "sft", "reward": "helpful"},
        data={"sources": [source("prompts.jsonl")], "held_out_sources": [], "rows": 9, "prompts": 9, "dropped": {}},
        files={"metrics.jsonl": jsonl(lines), "samples.jsonl": jsonl(samples), "rows.jsonl": jsonl(kept)},
    )  # fmt: skip


def asked(number: int) -> Any:
    """A prompt as samples have it: turns, or the text of a family without turns."""
    return f"Ask {number}" if number == 2 else [{"role": "user", "content": f"Ask {number} {NASTY}"}]


def ppo_run(runs: Path, base: Path, start: Path, helpful: Path) -> Path:
    lines = [
        {"step": n, "loss": 0.1 * n, "reward": float(n), "kl": n / 10, "entropy": 1 / n, "answer_tokens": 20.0,
         **({"held_out_reward": 1.0, "held_out_kl": 0.0} if n == 1 else {})}
        for n in range(1, 7)
    ]  # fmt: skip
    answers = [
        {
            "step": step,
            "origin": f"prompts.jsonl:{n}",
            "prompt": asked(n),
            "answer": f"{word} {NASTY}",
            "reward": reward,
            "finished": True,
        }
        for n in range(3)
        for step, word, reward in ((0, "hm", 0.5), (3, "well", 1.5), (6, "gladly", 3.25))
    ]
    metrics = {
        "steps": 6, "held_out_reward_before": 1.0, "held_out_reward_after": 5.5, "held_out_kl_before": 0.0,
        "held_out_kl_after": 0.75, "reward_first": 1.0, "reward_last": 6.0,
    }  # fmt: skip
    return whole_run(
        runs, base, "ppo", "ppo", inputs={"sft": start, "helpful": helpful}, metrics=metrics,
        settings={"kind": "ppo", "start_from": "sft", "reward": "helpful"}, warnings=[f"kl is large {NASTY}"],
        data={"sources": [source("prompts.jsonl")], "held_out_sources": [], "rows": 9, "prompts": 6, "dropped": {}},
        files={"metrics.jsonl": jsonl(lines), "samples.jsonl": jsonl(answers), "adapter_config.json": b"{}"},
    )  # fmt: skip


def chain(folder: Path) -> dict[str, Path]:
    """A base and a run of each kind on it, by stage."""
    base = make_base(folder / "base")
    runs = folder / "runs"
    sft = sft_run(runs, base)
    helpful = reward_run(runs, base, sft)
    best = reject_run(runs, base, sft, helpful)
    return {"sft": sft, "helpful": helpful, "best": best, "ppo": ppo_run(runs, base, sft, helpful)}
