"""The whole command, from a recipe's text to a run's folder, on a two-layer LLaMA made on the spot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_llama, tiny_llama3_tokenizer

QUESTIONS = [{"prompt": f"What is {a} and {b}?", "completion": f"It is {a + b}."} for a in range(8) for b in range(4)]
"""32 short rows, no two alike: 16 to 18 tokens each with the tiny tokenizer."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with 2 layers of width 64, GQA 4/2, 512 words, seeded random weights, and a Llama-3-like tokenizer."""
    return tiny_llama(tiny_llama3_tokenizer(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture
def finetune(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in this process, which saves the imports: `finetune("sft", recipe)`."""
    from finetune.cli.main import main

    def run(*args: str | Path) -> Ended:
        capfd.readouterr()
        code = main([str(arg) for arg in args])
        printed = capfd.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def subprocess_env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def command() -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "finetune.cli.main"]


@pytest.fixture(scope="session")
def in_process_of_its_own(command: list[str], subprocess_env: dict[str, str]) -> Run:
    def run(*args: str | Path, cwd: Path | None = None) -> Ended:
        done = subprocess.run(
            [*command, *(str(arg) for arg in args)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env=subprocess_env,
            timeout=300,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Write recipe.yaml, a right one on the tiny base and 32 questions, with the given values changed.

    recipe({"model.load_in": "fp32", "stages.sft.data": [...]}): key paths as in --set. Returns its path.
    """
    write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)

    def write(changes: Mapping[str, Any] | None = None, name: str = "recipe.yaml") -> Path:
        content: dict[str, Any] = {
            "name": "tiny",
            "model": {"base": str(tiny_base), "load_in": "fp32", "max_length": 64},
            "adapter": {"rank": 4, "alpha": 8},
            "stages": {
                "sft": {
                    "kind": "sft",
                    "data": [{"path": "questions.jsonl"}],
                    "held_out": {"fraction": 0.2},
                    "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 0.01},
                }
            },
        }
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            section = content
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        target = tmp_path / name
        target.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return target

    return write


def files_below(folder: Path) -> list[str]:
    """Every file and folder below `folder`, relative, sorted; nothing where it does not exist."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.is_dir() else []
