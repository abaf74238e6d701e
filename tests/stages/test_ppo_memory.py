"""One base for policy, reference, reward and value: an iteration of PPO needs little more memory than a step of SFT.

Counted are bytes that torch allocates, from its profiler: the process's size would also tell how the allocator leaves
holes, and how large Python is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stage_recipes import Walk, reward_stage, write_jsonl

ROWS = 16
ONE_FORWARD = {"batch_size": ROWS, "micro_batch_size": ROWS, "learning_rate": 1e-4}


def peak_bytes(work: Callable[[], Any]) -> tuple[int, Any]:
    """Largest sum of living allocations that `work` made."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = work()
    events = profiler.profiler.kineto_results.events()
    living = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        living += event.nbytes()
        peak = max(peak, living)
    return peak, result


def test_an_iteration_needs_at_most_a_third_more_than_a_step_of_sft_on_as_many_tokens(
    walk: Walk, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.engine import loop
    from finetune.engine.ppo import Iterations

    measured: dict[str, list[tuple[int, int]]] = {"sft": [], "ppo": [], "sampling": []}
    one_step, begin, current = loop._one_step, Iterations.begin, ["sft"]

    def step(model: Any, work: Any, batches: Any, *rest: Any) -> Any:
        peak, result = peak_bytes(lambda: one_step(model, work, batches, *rest))
        measured[current[0]].append((peak, sum(batch.tokens for batch in batches)))
        return result

    def begun(self: Iterations, number: int) -> Any:
        peak, result = peak_bytes(lambda: begin(self, number))
        measured["sampling"].append((peak, 0))
        return result

    monkeypatch.setattr(loop, "_one_step", step)
    monkeypatch.setattr(Iterations, "begin", begun)
    long = " ".join("It is so." for _ in range(12))
    write_jsonl(tmp_path / "long.jsonl", [{"prompt": f"What is {i}?", "completion": long} for i in range(2 * ROWS)])
    walk({"sft": {"kind": "sft", "data": [{"path": "long.jsonl"}], "held_out": {"fraction": 0},
                  "train": {**ONE_FORWARD, "max_steps": 2}}})  # fmt: skip
    current[0] = "ppo"
    walk({"helpful": reward_stage(train={**ONE_FORWARD, "max_steps": 1}),
          "ppo": {"kind": "ppo", "prompts": [{"path": "long.jsonl"}], "reward": "helpful", "held_out": {"fraction": 0},
                  "rollouts": ROWS, "iterations": 2, "max_new_tokens": 64, "train": ONE_FORWARD}})  # fmt: skip
    sft = max(peak / tokens for peak, tokens in measured["sft"])
    ppo, tokens = max((peak / tokens, tokens) for peak, tokens in measured["ppo"][-2:])
    assert ppo <= 1.3 * sft
    sampling = max(peak for peak, _ in measured["sampling"])
    assert sampling <= 1.3 * sft * tokens, "sampling and scoring keep no activations"
