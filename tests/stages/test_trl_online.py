"""grpo and rloo through the command: TRL's trainers see our prompts, our rewards and our settings, and learn."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stage_recipes import Walk, reward_stage, sft_stage, train, write_jsonl

from finetune.engine.rewards import Answer, Scores
from finetune.errors import InputError, RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.sampling_stages import GrpoStage, RlooStage
from finetune.stages import trl_online
from finetune.stages.trl_online import prompt_stream

KINDS = ("grpo", "rloo")
STEPS = train(max_steps=2, batch_size=8, micro_batch_size=4, schedule="constant", warmup=0, learning_rate=0.02)


def online(kind: str, **changes: Any) -> dict[str, Any]:
    settings = {
        "kind": kind,
        "prompts": [{"path": "questions.jsonl"}],
        "checker": {"kind": "regex", "pattern": "e"},
        "max_new_tokens": 6,
        "samples": 4,
        "train": STEPS,
        **changes,
    }
    if "reward" in changes:
        del settings["checker"]
    return settings


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Answer], Scores]]:
    """Every call of the stage's own judge: the answers that it was given, and what it said."""
    seen: list[tuple[Sequence[Answer], Scores]] = []
    opened = trl_online.open_judge

    def open_watched(*given: Any) -> Callable[[Sequence[Answer]], Scores]:
        judge = opened(*given)

        def watched(answers: Sequence[Answer]) -> Scores:
            seen.append((answers, judge(answers)))
            return seen[-1][1]

        return watched

    monkeypatch.setattr(trl_online, "open_judge", open_watched)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_learns_what_the_checker_wants(walk: Walk, kind: str) -> None:
    """Answers with an e: about half at the start, nearly all at the end."""
    settings = {**STEPS, "max_steps": 24, "batch_size": 32, "micro_batch_size": 32, "schedule": "linear"}
    done = walk({"one": online(kind, samples=8, train=settings)})
    rewards = [line["reward"] for line in done.metrics("one")]
    assert np.mean(rewards[:3]) < 0.65 and np.mean(rewards[-3:]) > 0.85
    metrics = done.manifest("one")["metrics"]
    assert (metrics["reward_first"], metrics["reward_last"]) == (rewards[0], rewards[-1])
    assert metrics["unit"] == "answer tokens"
    assert metrics["steps"] == 24
    assert done.manifest("one")["proof"]["max_abs_difference"] == 0.0
    assert done.manifest("one")["resolved"]["engine"].startswith("trl 1.")


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_policy_to_our_prompts(
    walk: Walk, kind: str, monkeypatch: pytest.MonkeyPatch, tiny_base: Path, tmp_path: Path
) -> None:
    """At a temperature near 0 each answer of the first step is the base's greedy one to our ids of the prompt: padding
    on the left, the cache and our attention change nothing; a prompt may hold the text of a special token."""
    from transformers import LlamaForCausalLM

    texts = ["What is 7?", "Say <|eot_id|> to the little llama, who lived on a hill.", "system", "a b c d e f g h i"]
    write_jsonl(tmp_path / "odd.jsonl", [{"prompt": text, "completion": "-"} for text in texts])
    seen = _watched(monkeypatch)
    settings = {**STEPS, "max_steps": 1, "batch_size": 8, "micro_batch_size": 8}
    done = walk(
        {
            "one": online(
                kind,
                prompts=[{"path": "odd.jsonl"}],
                max_new_tokens=24,
                samples=2,
                temperature=1e-4,
                train=settings,
            )
        }
    )
    [(answers, scores)] = seen
    assert len(answers) == 8 and len({answer.prompt.key for answer in answers}) == 4
    plain = LlamaForCausalLM.from_pretrained(tiny_base).eval()
    stops = trl_online_stops(done.folders["one"])
    for answer in answers:
        ids = torch.from_numpy(answer.prompt.ids)[None]
        wanted: list[int] = []
        while len(wanted) < 24 and not (wanted and wanted[-1] in stops):
            with torch.no_grad():
                wanted.append(
                    int(plain(torch.cat([ids, torch.tensor([wanted], dtype=torch.int64)], 1)).logits[0, -1].argmax())
                )
        assert answer.ids.tolist() == wanted
        assert answer.finished == (wanted[-1] in stops)
    [line] = done.metrics("one")
    assert line["reward"] == pytest.approx(scores.total.mean())
    assert line["score_regex"] == pytest.approx(scores.total.mean())
    assert line["finished"] == pytest.approx(np.mean([answer.finished for answer in answers]))
    assert line["trained"] == sum(len(answer.ids) for answer in answers)
    assert line["tokens"] == line["trained"] + sum(len(answer.prompt.ids) for answer in answers)


def trl_online_stops(folder: Path) -> set[int]:
    return set(json.loads((folder / "generation_config.json").read_text())["eos_token_id"])


def test_every_stop_token_of_the_family_ends_an_answer(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 3.1 has two: at a high temperature the 512 words come up alike, and answers end with either."""
    seen = _watched(monkeypatch)
    settings = {**STEPS, "max_steps": 2, "batch_size": 64, "micro_batch_size": 64}
    done = walk({"one": online("grpo", samples=8, max_new_tokens=64, temperature=50.0, train=settings)})
    stops = trl_online_stops(done.folders["one"])
    ends = {int(answer.ids[-1]) for answers, _ in seen for answer in answers if answer.finished}
    assert ends == stops and len(stops) > 1
    assert all(not stops & set(answer.ids[:-1].tolist()) for answers, _ in seen for answer in answers)


@pytest.mark.parametrize(("kind", "load_in"), [("grpo", "nf4"), ("rloo", "fp32")])
def test_a_reward_model_judges_on_the_same_base(walk: Walk, kind: str, load_in: str, tmp_path: Path) -> None:
    """A policy that answers No more often than It learns It from a reward model that prefers it. Its reference is TRL's
    copy of what it starts from, so the first KL is 0; what is saved is the policy alone."""
    mixed = [{"prompt": f"What is {i}?", "completion": f"It is {i}." if i % 5 == 0 else f"No {i}."} for i in range(40)]
    write_jsonl(tmp_path / "mixed.jsonl", mixed)
    learning = train(max_steps=25, batch_size=8, micro_batch_size=8, learning_rate=0.02)
    settings = {**STEPS, "max_steps": 12, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 0.01}
    stages = {
        "sft": sft_stage(data=[{"path": "mixed.jsonl"}], train=learning),
        "judge": reward_stage(train=learning),
        "one": online(kind, start_from="sft", reward="judge", kl=0.01, samples=8, train=settings),
    }
    done = walk(stages, {"model.load_in": load_in})
    lines = done.metrics("one")
    rounded = 1e-4 if load_in == "nf4" else 1e-7  # TRL rounds the policy to bf16 there, not its copy
    assert lines[0]["kl"] == pytest.approx(0.0, abs=rounded)
    assert lines[-1]["kl"] > 1e-4
    scores = [line["score_reward"] for line in lines]
    assert np.mean(scores[-4:]) > scores[0] + 0.5 * lines[0]["reward_std"], (scores, lines[0]["reward_std"])
    saved, start = (load_file(done.folders[name] / "adapter_model.safetensors") for name in ("one", "sft"))
    assert saved.keys() == start.keys()
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    assert all(not torch.equal(saved[name], start[name]) for name in saved)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on(walk: Walk, kind: str, interrupted: Callable[[int], Any]) -> None:
    """Stopped in step 3, with a reward model and a reference beside the policy: it ends in the same bits."""
    settings = {**STEPS, "max_steps": 5, "checkpoint_every": 2}
    stages = {"judge": reward_stage(), "one": online(kind, reward="judge", kl=0.1, train=settings)}
    whole = walk(stages, runs="whole")
    with interrupted(3):
        walk(stages, runs="cut")
    resumed = walk(stages, runs="cut")
    assert "resumed from the checkpoint of step" in resumed.said
    assert resumed.weights("one") == whole.weights("one")
    away = ("step_time",)
    one, other = (
        [{k: v for k, v in line.items() if k not in away} for line in run.metrics("one")] for run in (whole, resumed)
    )
    assert one == other


CHANGES: dict[str, dict[str, Any]] = {
    "prompts": {"prompts": [{"path": "pairs.jsonl"}]},
    "start_from": {"start_from": "sft"},
    "checker": {"checker": {"kind": "regex", "pattern": "a"}},
    "max_new_tokens": {"max_new_tokens": 3},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 5},
    "temperature": {"temperature": 0.5},
    "samples": {"samples": 2},
    "kl": {"kl": 0.5},
    "train": {"train": {**STEPS, "learning_rate": 0.01}},
    "train.max_grad_norm": {"train": {**STEPS, "max_grad_norm": None}},
}
ELSEWHERE = {"kind", "reward", "safety", "rows_at_once"}
"""reward: above; safety: tests/engine/test_rewards.py; rows_at_once is refused."""


@pytest.mark.slow
def test_every_key_counts(walk: Walk) -> None:
    assert set(GrpoStage.model_fields) == {key for key in CHANGES if "." not in key} | ELSEWHERE
    assert set(RlooStage.model_fields) == set(GrpoStage.model_fields)
    stages = {"sft": sft_stage(), "as-is": online("grpo"), "rloo": online("rloo"), "rloo-kl": online("rloo", kl=0.9)}
    done = walk({**stages, **{name.replace(".", "-"): online("grpo", **change) for name, change in CHANGES.items()}})
    weights = {name: done.weights(name) for name in done.folders if name != "sft"}
    assert len(set(weights.values())) == len(weights)


def test_prompts_are_taken_pass_after_pass() -> None:
    """5 prompts, 2 in a step (8 answers, 4 to each): a pass and a half is 4 steps, and no prompt comes back early."""
    made = RlooStage.model_validate(online("rloo", train={"epochs": 1.5, "batch_size": 8, "micro_batch_size": 4}))
    order = prompt_stream(5, made, seed=1)
    assert len(order) == 8 and sorted(order[:5]) == [0, 1, 2, 3, 4] and len(set(order[5:])) == 3
    assert prompt_stream(5, made, seed=1).tolist() == order.tolist() != prompt_stream(5, made, seed=2).tolist()
    cut = RlooStage.model_validate(online("rloo", train={"max_steps": 1, "batch_size": 8, "micro_batch_size": 4}))
    assert len(prompt_stream(5, cut, seed=1)) == 2


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows_at_once: is not read here": ({"rows_at_once": 4}, {}),
    "train.eval_every: is not read here": ({"train": {**STEPS, "eval_every": 1}}, {}),
    "adapter.dropout is not 0": ({}, {"adapter.dropout": 0.1}),
    "adapter.modules_to_save is more than": ({}, {"adapter.modules_to_save": ["lm_head"]}),
    "adapter.init pissa": ({}, {"adapter.init": "pissa"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", REFUSED)
def test_what_trl_cannot_do_is_refused_by_check(write_recipe: Callable[..., Path], kind: str, words: str) -> None:
    change, adapter = REFUSED[words]
    with pytest.raises(RecipeError, match=words):
        load_recipe(write_recipe({"one": online(kind, **change)}, adapter))
    load_recipe(write_recipe({"one": online(kind)}))


def test_adapters_it_cannot_go_on_from_are_refused(walk: Walk) -> None:
    stages = {"sft": sft_stage(), "one": online("grpo", start_from="sft")}
    with pytest.raises(InputError, match="start_from sft: its adapter's dropout is not 0"):
        walk(stages, {"adapter.dropout": 0.1})
    with pytest.raises(InputError, match="TRL cannot train LoRA on lm_head"):
        walk(stages, {"adapter.targets": ["q_proj", "lm_head"]}, runs="head")


def test_without_trl_it_says_how_to_install_it(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(InputError, match=r"kind grpo: TRL is not installed: pip install 'finetune\[trl\]'"):
        walk({"one": online("grpo")})
