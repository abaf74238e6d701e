"""Finished runs to talk to: adapters that know an answer by heart, and what cannot be talked to, on tiny bases."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_recipes import PAIRS, reward_stage, tiny_base, train, write_jsonl
from tiny import tiny_llama, tiny_spm_tokenizer

from finetune.chat.model import Answering
from finetune.shapes import Dialog, Message

__all__ = ["Lab", "lab", "say_nothing", "spm_base", "tiny_base", "walk_in"]

LETTERS = "The 🦙 sings: 日本語, é!"
"""An answer whose letters are several tokens each in byte-level words."""
PLAIN = "Rome is the capital of Italy."
ASKED = [Dialog((Message("user", text),)) for text in ("What is 3?", "What is it?", "Who sings in the rain?")]
WARM = Answering(temperature=1.0, top_p=0.95, max_new_tokens=40, seed=4, samples=3)
SHORT = Answering(max_new_tokens=40)


def say_nothing(line: str) -> None:
    pass


@dataclass(frozen=True)
class Lab:
    """folder: recipe.yaml and its data. runs: the finished stages' folders by name."""

    folder: Path
    base: Path
    runs: Mapping[str, Path]


def by_heart(answer: str, steps: int = 40) -> dict[str, Any]:
    """An sft stage after which the model says this to all that is asked like it."""
    return {"kind": "sft", "data": [{"path": answer}], "train": train(max_steps=steps, learning_rate=0.02)}


def walk_in(folder: Path, base: Path, stages: Mapping[str, Any], model: Mapping[str, Any] | None = None) -> Lab:
    """Run a recipe in a folder of its own."""
    from finetune.cli.walk import walk
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    recipe = {
        "name": "lab",
        "model": {"base": str(base), "load_in": "fp32", "max_length": 128, **(model or {})},
        "adapter": {"rank": 8, "alpha": 16},
        "stages": dict(stages),
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    walk(path, (), folder / "runs", kinds=None)
    plan = make_plan(load_recipe(path, ()), folder / "runs")
    return Lab(folder, base, {stage.name: stage.folder for stage in plan.stages})


def questions(answers: Sequence[str]) -> list[dict[str, str]]:
    return [{"prompt": f"What is {i}?", "completion": answer} for i, answer in enumerate(answers * 8)]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Lab:
    """Stages letters and plain, adapters that say LETTERS and PLAIN, a reward model, and sampled rows."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copytree(tiny_base, folder / "base")
    write_jsonl(folder / "letters.jsonl", questions([LETTERS]))
    write_jsonl(folder / "plain.jsonl", questions([PLAIN]))
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    stages = {
        "letters": by_heart("letters.jsonl"),
        "plain": by_heart("plain.jsonl"),
        "helpful": reward_stage(train=train(max_steps=1)),
        "best": {
            "kind": "reject", "policy": "plain", "reward": "helpful", "prompts": [{"path": "plain.jsonl"}],
            "samples": 4, "max_new_tokens": 8, "temperature": 3.0,
        },
    }  # fmt: skip
    return walk_in(folder, folder / "base", stages)


@pytest.fixture(scope="session")
def spm_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_base, with a Llama-2-like tokenizer."""
    return tiny_llama(tiny_spm_tokenizer(tmp_path_factory.mktemp("bases") / "spm"), words=600)
