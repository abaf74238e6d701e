"""Recipes of several stages on a two-layer LLaMA made on the spot, run in this process as the command runs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_llama, tiny_llama3_tokenizer

Rows = Sequence[Mapping[str, Any]]

RATINGS = ("significantly_better", "better", "slightly_better", "negligibly_better")
PAIRS: Rows = [
    {
        "prompt": f"What is {i}?",
        "chosen": f"It is {i}." + " Yes." * (i % 3),
        "rejected": f"No {i % 7}." + " No." * (i % 4),
        "rating": RATINGS[i % 4],
        "margin": i % 4 / 4,
        "topic": "odd" if i % 2 else "even",
    }
    for i in range(40)
]
"""40 comparisons whose rule is easy: the better answer begins with It. Rated, with margins and a column to slice by."""
RANKED: Rows = [{"prompt": f"What is {i}?", "answers": [f"It is {i}.", f"It {i}", "No."]} for i in range(24)]
JUDGED: Rows = [
    {"prompt": f"What is {i}?", "completion": f"It is {i}." if i % 2 else f"No {i}.", "label": bool(i % 2)}
    for i in range(32)
]
QUESTIONS: Rows = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(24)]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with 2 layers of width 64, GQA 4/2, 512 words, seeded random weights, and a Llama-3-like tokenizer."""
    return tiny_llama(tiny_llama3_tokenizer(tmp_path_factory.mktemp("bases") / "tiny"))


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Finished:
    """folders: of the finished runs, by stage. said: what the user was shown."""

    folders: Mapping[str, Path]
    said: str

    def manifest(self, stage: str) -> dict[str, Any]:
        return json.loads((self.folders[stage] / "manifest.json").read_text())

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """metrics.jsonl without what differs from run to run: times and memory."""
        lines = [json.loads(line) for line in (self.folders[stage] / "metrics.jsonl").read_text().splitlines()]
        away = ("seconds", "tokens_per_second", "memory_gib")
        return [{k: v for k, v in line.items() if k not in away} for line in lines]

    def weights(self, stage: str) -> bytes:
        return (self.folders[stage] / "adapter_model.safetensors").read_bytes()


Walk = Callable[..., Finished]


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Write recipe.yaml with the given stages, and pairs, ranked, judged and questions.jsonl beside it.

    write_recipe({"reward": {"kind": "reward", …}}, {"model.load_in": "nf4"}): stages, then key paths as in --set.
    """
    for name, rows in (("pairs", PAIRS), ("ranked", RANKED), ("judged", JUDGED), ("questions", QUESTIONS)):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)

    def write(stages: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Path:
        content: dict[str, Any] = {
            "name": "tiny",
            "model": {"base": str(tiny_base), "load_in": "fp32", "max_length": 128},
            "adapter": {"rank": 4, "alpha": 8},
            "stages": dict(stages),
        }
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            section = content
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        target = tmp_path / "recipe.yaml"
        target.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return target

    return write


@pytest.fixture
def walk(write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Walk:
    """Run a recipe as `finetune run` does: `walk(stages, changes, runs="runs")`."""
    from finetune.cli.walk import walk as walk_recipe
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    def run(
        stages: Mapping[str, Any],
        changes: Mapping[str, Any] | None = None,
        *,
        runs: str = "runs",
        overrides: Sequence[str] = (),
    ) -> Finished:
        path = write_recipe(stages, changes)
        capsys.readouterr()
        walk_recipe(path, overrides, tmp_path / runs, kinds=None)
        printed = capsys.readouterr()
        plan = make_plan(load_recipe(path, overrides), tmp_path / runs)
        return Finished({stage.name: stage.folder for stage in plan.stages}, printed.out + printed.err)

    return run


def train(**changes: Any) -> dict[str, Any]:
    """`train:` of a short run."""
    return {"max_steps": 4, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.005, **changes}


def reward_stage(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "reward",
        "data": [{"path": "pairs.jsonl"}],
        "held_out": {"fraction": 0.2},
        "train": train(),
        **changes,
    }


def dpo_stage(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "dpo",
        "data": [{"path": "pairs.jsonl"}],
        "held_out": {"fraction": 0.2},
        "train": train(),
        **changes,
    }


def sft_stage(**changes: Any) -> dict[str, Any]:
    return {"kind": "sft", "data": [{"path": "questions.jsonl"}], "train": train(max_steps=2), **changes}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """`with interrupted(3): walk(…)`: SIGTERM reaches the process when step 3 is logged, and the run ends for it."""
    import os
    import signal
    from contextlib import contextmanager

    from finetune.engine.tracking import MetricsFile
    from finetune.errors import InterruptedRunError

    @contextmanager
    def at(step: int) -> Any:
        write = MetricsFile.write

        def stopped(self: MetricsFile, metrics: Mapping[str, Any]) -> None:
            write(self, metrics)
            if metrics["step"] == step and "learning_rate" in metrics:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match=f"after step {step}"):
            patch.setattr(MetricsFile, "write", stopped)
            yield

    return at
