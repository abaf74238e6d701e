"""PPO on real weights towards a rule: a word that appears, a story that closes in time; little of the language is lost.

The base was never shown its </s> (its stories end with <s>), and LoRA cannot teach a token that it has no row for. So a
story closes by what it says: one of the formulas that such stories end with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_recipes import write_jsonl

from finetune.execute import run_recipe
from finetune.recipe.load import load_recipe
from finetune.stages.score import evaluate

TOKENS = 60


def chain(
    shared: Path, folder: Path, checker: dict[str, Any], told: float, **changes: Any
) -> tuple[float, float, dict[str, Any]]:
    """SFT on stories, then PPO: (held-out loss after SFT, after PPO; metrics of PPO).

    told: how much of a story a prompt has.
    """
    lines = (shared / "data" / "tinystories.jsonl").read_text().splitlines()
    stories = [json.loads(line)["text"] for line in lines]
    short = [story for story in stories if len(story) < 1000]
    starts = list(dict.fromkeys(" ".join(words[: int(told * len(words))]) for words in map(str.split, short[160:-30])))
    write_jsonl(folder / "stories.jsonl", [{"text": story} for story in short[:160]])
    write_jsonl(folder / "held_out.jsonl", [{"text": story} for story in short[-30:]])
    write_jsonl(folder / f"prompts{told}.jsonl", [{"prompt": start} for start in starts[:-64]])
    write_jsonl(folder / f"other_prompts{told}.jsonl", [{"prompt": start} for start in starts[-64:]])
    ppo = {
        "kind": "ppo",
        "start_from": "sft",
        "prompts": [{"path": f"prompts{told}.jsonl"}],
        "held_out": {"data": [{"path": f"other_prompts{told}.jsonl"}]},
        "checker": checker,
        "max_new_tokens": TOKENS,
        "rollouts": 64,
        "samples": 4,
        "iterations": 6,
        "passes": 2,
        "kl": 0.1,
        "no_stop_penalty": 0.0,
        "sample_every": 100,
        "train": {"batch_size": 32, "micro_batch_size": 16, "learning_rate": 1e-3},
        **changes,
    }
    recipe = {
        "name": "stories",
        "model": {
            "base": str(shared / "models" / "stories260K"),
            "load_in": "fp32",
            "max_length": 512,
            "template": "plain",
        },
        "adapter": {"rank": 16, "alpha": 32},
        "stages": {
            "sft": {
                "kind": "sft",
                "data": [{"path": "stories.jsonl"}],
                "held_out": {"data": [{"path": "held_out.jsonl"}]},
                "train": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3},
            },
            "ppo": ppo,
        },
    }
    path = folder / f"{told}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    plan = run_recipe(load_recipe(path, ()), folder / "runs", lambda line: None)
    losses = []
    for stage in plan.stages:
        manifest = json.loads((stage.folder / "manifest.json").read_text())
        found = evaluate(stage.folder, manifest, folder / "held_out.jsonl", say=lambda line: None)
        losses.append(found.summary["loss"])
    return losses[0], losses[1], manifest["metrics"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for both: the SFT stage is the same, and is done once."""
    return tmp_path_factory.mktemp("stories")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checker", "told", "changes"),
    [
        ({"kind": "regex", "pattern": r"\bhappy\b"}, 0.1, {}),
        ({"kind": "regex", "pattern": r"[Tt]he end\b|ever after\.|[Ff]rom that day"}, 0.7, {}),
    ],
    ids=["a word appears", "the story closes"],
)
def test_the_pass_rate_rises_by_thirty_points_and_the_loss_by_less_than_a_tenth(
    shared: Path, folder: Path, checker: dict[str, Any], told: float, changes: dict[str, Any]
) -> None:
    before, after, metrics = chain(shared, folder, checker, told, **changes)
    passed = metrics["held_out_reward_before"], metrics["held_out_reward_after"]
    assert passed[1] >= passed[0] + 0.30, passed
    assert after <= 1.10 * before, (before, after)
