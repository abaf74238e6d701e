"""The ppo stage on a tiny LLaMA: exact beginnings, a known optimum, no reward no change, resume, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stage_recipes import QUESTIONS, Finished, Walk, reward_stage, train

from finetune.engine.optim import default_learning_rate
from finetune.errors import InputError, RecipeError
from finetune.recipe.sampling_stages import PpoStage

UPDATE = {"batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.005}
FIRST_TOKEN = {"kind": "regex", "pattern": "^[a-m]"}
"""The random tiny model begins about a fifth of its answers like that."""


def ppo_stage(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "ppo",
        "prompts": [{"path": "questions.jsonl"}],
        "held_out": {"fraction": 0.25},
        "checker": FIRST_TOKEN,
        "rollouts": 16,
        "samples": 2,
        "iterations": 2,
        "max_new_tokens": 6,
        "sample_every": 1,
        "no_stop_penalty": 0.0,
        "train": UPDATE,
        **changes,
    }


def test_what_a_run_writes_and_measures(walk: Walk) -> None:
    done = walk({"helpful": reward_stage(), "ppo": ppo_stage(checker=None, reward="helpful")})
    log = [line for line in done.metrics("ppo") if "reward" in line]
    assert [line["step"] for line in log] == [1, 3]
    assert log[0]["kl"] == log[0]["kl_k3"] == 0.0
    assert log[1]["kl"] != 0.0
    assert log[0]["clip_fraction"] == log[0]["update_kl"] == 0.0, "the first ratio is exactly 1"
    assert 0 < log[0]["entropy"] <= 6.3, "nats, at most log(512)"
    assert set(log[0]) >= {
        "held_out_reward", "held_out_kl", "explained_variance", "answer_tokens", "finished", "earned",
        "speed_sampling", "speed_scoring", "speed_comparing", "seconds_sampling", "seconds_scoring",
        "seconds_comparing", "value_loss",
    }  # fmt: skip
    resolved = done.manifest("ppo")["resolved"]
    assert resolved["learning_rate"] == UPDATE["learning_rate"]
    assert resolved["value_learning_rate"] == pytest.approx(default_learning_rate(64, 8, 4, False) / 3)
    metrics = done.manifest("ppo")["metrics"]
    assert metrics["iterations"] == 2
    assert metrics["steps"] == 4
    assert metrics["held_out_kl_before"] == 0.0
    assert metrics["held_out_reward_after"] != metrics["held_out_reward_before"]
    samples = [json.loads(line) for line in (done.folders["ppo"] / "samples.jsonl").read_text().splitlines()]
    assert {line["step"] for line in samples} == {0, 2, 4}
    assert len(samples) == 3 * 6
    asked = {question["prompt"] for question in QUESTIONS}
    assert all(line["prompt"] in asked or line["prompt"][-1]["content"] in asked for line in samples)
    saved = load_file(done.folders["ppo"] / "adapter_model.safetensors")
    assert not any("value" in name or "score" in name for name in saved), "the policy is what is kept"


def test_every_weight_of_policy_and_value_learns(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.engine import loop

    seen: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
    train_loop = loop.train

    def watched(model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        result = train_loop(model, *args, **kwargs)
        seen.append((before, {name: p.detach().clone() for name, p in model.named_parameters()}))
        return result

    monkeypatch.setattr(loop, "train", watched)
    walk({"sft": {"kind": "sft", "data": [{"path": "questions.jsonl"}], "train": train(max_steps=2)},
          "helpful": reward_stage(), "ppo": ppo_stage(checker=None, reward="helpful", start_from="sft")})  # fmt: skip
    before, after = seen[-1]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = {name for name in before if ".default." in name or ".value." in name or name.startswith("head.")}
    assert trained == moved
    assert {name.split(".lora_")[-1].split(".")[1] for name in moved if ".lora_" in name} == {"default", "value"}


@pytest.mark.parametrize("whiten", [True, False])
def test_a_constant_reward_moves_nothing(walk: Walk, whiten: bool) -> None:
    """Whitened, all earn 0; else all earn 1, which the value model, that begins at 0, does not know yet."""
    every = {"kind": "regex", "pattern": "^"}
    done = walk({"ppo": ppo_stage(checker=every, whiten_scores=whiten, iterations=3,
                                  train={**UPDATE, "weight_decay": 0.0})})  # fmt: skip
    weights = load_file(done.folders["ppo"] / "adapter_model.safetensors")
    assert all((tensor == 0).all() for name, tensor in weights.items() if "lora_B" in name), "B began as 0"
    log = [line for line in done.metrics("ppo") if "reward" in line]
    assert all(line["reward"] == 1.0 and line["kl"] == 0.0 for line in log)
    if not whiten:
        assert log[0]["advantage_std"] > 0
        assert log[-1]["value_loss"] < log[0]["value_loss"], "the value model learns what there is to learn"


def test_a_bandit_is_solved(walk: Walk) -> None:
    """One token an answer, one of 26 arms pays: the optimum is 1, reached to 95 % and more."""
    done = walk({"ppo": ppo_stage(iterations=30, passes=2, max_new_tokens=1, rollouts=32, sample_every=100,
                                  kl=0.0, train={**UPDATE, "batch_size": 16, "micro_batch_size": 16,
                                                 "learning_rate": 0.02})})  # fmt: skip
    log = [line for line in done.metrics("ppo") if "reward" in line]
    assert log[0]["reward"] < 0.6
    assert sum(line["reward"] for line in log[-3:]) / 3 >= 0.95
    assert done.manifest("ppo")["metrics"]["held_out_reward_after"] >= 0.95


def test_the_penalty_holds_the_policy_near_its_reference(walk: Walk) -> None:
    def final_kl(kl: float) -> float:
        stage = ppo_stage(iterations=16, rollouts=32, kl=kl, sample_every=100, train={**UPDATE, "learning_rate": 0.003})
        metrics = walk({"ppo": stage}, runs=f"runs{kl}").manifest("ppo")["metrics"]
        value: float = metrics["held_out_kl_after"]
        return value

    free, held = final_kl(0.0), final_kl(1.0)
    assert free > 1.0
    assert held < free / 3


def test_runaway_kl_stops_and_keeps_the_iteration_before(walk: Walk) -> None:
    wild = {**UPDATE, "learning_rate": 0.05}
    done = walk({"ppo": ppo_stage(iterations=12, kl=0.0, max_kl=0.5, train=wild)})
    manifest = done.manifest("ppo")
    assert manifest["metrics"]["stopped_early"]
    assert manifest["metrics"]["iterations"] < 12
    assert "over max_kl 0.5" in manifest["warnings"][0]
    assert manifest["metrics"]["held_out_kl_after"] < 5


def test_the_reason_for_a_stop_outlives_a_kill_behind_it(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.engine import session

    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    stages = {"ppo": ppo_stage(iterations=12, kl=0.0, max_kl=0.5, train={**UPDATE, "learning_rate": 0.05})}
    whole = walk(stages, runs="whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(session, "save", killed)
        walk(stages, runs="cut")
    resumed = walk(stages, runs="cut")
    assert resumed.weights("ppo") == whole.weights("ppo")
    assert resumed.manifest("ppo")["warnings"] == whole.manifest("ppo")["warnings"] != []


def test_what_the_last_iteration_does_to_the_kl_is_told(walk: Walk) -> None:
    done = walk({"ppo": ppo_stage(iterations=1, kl=0.0, max_kl=0.5, train={**UPDATE, "learning_rate": 0.05})})
    assert done.manifest("ppo")["metrics"]["held_out_kl_after"] > 0.5
    (warning,) = done.manifest("ppo")["warnings"]
    assert "after the last iteration" in warning and "over max_kl 0.5" in warning
    assert warning in done.said


def test_a_reward_model_that_does_not_fit_is_told(walk: Walk, tmp_path: Any) -> None:
    folder = walk({"helpful": reward_stage()}).folders["helpful"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["w_proj"]}))
    with pytest.raises(InputError, match="the adapter does not fit this base"):
        walk({"ppo": ppo_stage(checker=None, reward="broken")})


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_run_ends_in_the_same_bits(
    walk: Walk, interrupted: Callable[[int], Any], step: int, tmp_path: Any
) -> None:
    stages = {"helpful": reward_stage(),
              "ppo": ppo_stage(checker=None, reward="helpful", iterations=3, target_kl=0.5, kl=0.2)}  # fmt: skip
    whole = walk(stages, runs="whole")
    walk({"helpful": stages["helpful"]}, runs="cut")
    with interrupted(step):
        walk(stages, runs="cut")
    resumed = walk(stages, runs="cut")
    assert whole.weights("ppo") == resumed.weights("ppo")
    assert timeless(whole) == timeless(resumed)
    samples = [(done.folders["ppo"] / "samples.jsonl").read_bytes() for done in (whole, resumed)]
    assert samples[0] == samples[1]


def timeless(done: Finished) -> list[dict[str, Any]]:
    away = ("seconds_", "speed_")
    return [{k: v for k, v in line.items() if not k.startswith(away)} for line in done.metrics("ppo")]


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_the_layout_changes_the_work_not_the_result(walk: Walk, layout: str) -> None:
    """Shared prompts and no padding against whole padded rows: the same losses from the same answers."""
    one = walk({"ppo": ppo_stage(samples=4, iterations=1)}, runs="ragged")
    other = walk({"ppo": ppo_stage(samples=4, iterations=1, train={**UPDATE, "layout": "padded"})}, runs="padded")
    for ours, theirs in zip(one.metrics("ppo"), other.metrics("ppo"), strict=True):
        for key in ("policy_loss", "value_loss", "entropy", "reward", "grad_norm"):
            if key in ours:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


def test_nf4_starts_at_ratio_one_and_kl_zero(walk: Walk) -> None:
    done = walk({"helpful": reward_stage(), "ppo": ppo_stage(checker=None, reward="helpful")}, {"model.load_in": "nf4"})
    first = next(line for line in done.metrics("ppo") if "reward" in line)
    assert first["kl"] == first["update_kl"] == 0.0


def test_dropout_is_off(walk: Walk) -> None:
    done = walk({"ppo": ppo_stage()}, {"adapter.dropout": 0.3})
    first = next(line for line in done.metrics("ppo") if "reward" in line)
    assert first["kl"] == first["update_kl"] == 0.0


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompts": ({}, {"prompts": [{"path": "pairs_as_prompts.jsonl"}]}),
    "checker": ({}, {"checker": {"kind": "regex", "pattern": "[n-z]"}}),
    "max_new_tokens": ({}, {"max_new_tokens": 3}),
    "top_p": ({}, {"top_p": 0.5}),
    "top_k": ({}, {"top_k": 5}),
    "start_from": ({}, {"start_from": "sft"}),
    "held_out": ({}, {"held_out": {"fraction": 0.5}}),
    "temperature": ({}, {"temperature": 0.5}),
    "samples": ({}, {"samples": 4}),
    "rollouts": ({}, {"rollouts": 8}),
    "iterations": ({}, {"iterations": 1}),
    "passes": ({}, {"passes": 2}),
    "kl": ({}, {"kl": 1.0}),
    "target_kl": ({"iterations": 3}, {"iterations": 3, "target_kl": 0.1, "kl": 0.01}),
    "clip_range": ({"passes": 3}, {"passes": 3, "clip_range": 0.01}),
    "value_clip_range": ({"passes": 3, "iterations": 3}, {"passes": 3, "iterations": 3, "value_clip_range": 0.001}),
    "value_learning_rate": ({}, {"value_learning_rate": 0.05}),
    "gamma": ({}, {"gamma": 0.9}),
    "gae_lambda": ({}, {"gae_lambda": 0.5}),
    "entropy_weight": ({}, {"entropy_weight": 0.5}),
    "whiten_scores": ({}, {"whiten_scores": False}),
    "whiten_advantages": ({}, {"whiten_advantages": False}),
    "clip_score": ({}, {"clip_score": 0.1}),
    "no_stop_penalty": ({"whiten_scores": False}, {"whiten_scores": False, "no_stop_penalty": 1.0}),
    "train": ({}, {"train": {**UPDATE, "learning_rate": 0.001}}),
}
ELSEWHERE = {"kind", "reward", "safety", "rows_at_once", "max_kl", "sample_every"}
"""reward and max_kl: above; safety: tests/engine/test_rewards.py; rows_at_once: tests/model/test_generation.py and
below; sample_every: below."""


def test_every_key_has_a_case() -> None:
    assert set(PpoStage.model_fields) == CHANGES.keys() | ELSEWHERE


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_counts(walk: Walk, key: str, tmp_path: Any) -> None:
    from stage_recipes import sft_stage, write_jsonl

    write_jsonl(tmp_path / "pairs_as_prompts.jsonl", [{"prompt": f"Say {i}!", "completion": "."} for i in range(24)])
    ends = []
    for number, changes in enumerate(CHANGES[key]):
        stages: dict[str, Any] = {"sft": sft_stage()} if "start_from" in changes else {}
        stage = {key: value for key, value in ppo_stage(held_out={"fraction": 0.25}).items()}
        stages["ppo"] = {**stage, **changes}
        ends.append(walk(stages, runs=f"runs{number}").weights("ppo"))
    assert ends[0] != ends[1]


def test_how_many_rows_at_once_is_not_seen_in_the_result(walk: Walk) -> None:
    runs = [walk({"ppo": ppo_stage(rows_at_once=n, sample_every=2)}, runs=f"runs{n}") for n in (3, 64)]
    logs = [[line for line in done.metrics("ppo") if "reward" in line] for done in runs]
    for one, other in zip(*logs, strict=True):
        assert one["reward"] == other["reward"]
        assert one["answer_tokens"] == other["answer_tokens"]


def test_held_out_answers_are_written_as_often_as_asked(walk: Walk) -> None:
    done = walk({"ppo": ppo_stage(iterations=4, sample_every=2)})
    lines = (done.folders["ppo"] / "samples.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["step"] for line in lines}) == [0, 4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollouts": 15}, "rollouts: 15 has to be a multiple of samples 2"),
        ({"train": {**UPDATE, "batch_size": 7}}, "batch_size: 7 has to be a multiple of samples 2"),
        ({"train": {**UPDATE, "batch_size": 32}}, "batch_size: 32 is more than rollouts 16"),
        ({"train": {**UPDATE, "max_steps": 5}}, "max_steps: is not read by ppo: it has iterations"),
        ({"train": {**UPDATE, "eval_every": 5}}, "eval_every: is not read by ppo: it has sample_every"),
        ({"reward": "helpful"}, "needs exactly one of reward and checker; has both"),
    ],
)
def test_settings_that_do_not_fit(walk: Walk, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        walk({"helpful": reward_stage(), "ppo": ppo_stage(**changes)})
    assert message in str(caught.value)
