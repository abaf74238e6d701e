"""Short trainings of one small recipe, each distinct one run once, and what its checks say of them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import QUESTIONS, write_jsonl

from finetune.recipe import schema

COMMIT = "1" * 40
"""A hub revision that is a whole commit is taken at its word: no network."""

T, A, M, S = "stages.sft.train.", "adapter.", "model.", "stages.sft."


@dataclass(frozen=True)
class Seen:
    """One command: exit code, all that it printed, the forward passes of training, and the folder that it left."""

    code: int
    printed: str
    forwards: tuple[tuple[int, ...], ...] = ()  # shape of the ids, of each decoder call in training
    blocks: int = 0  # calls of a feed-forward block in training, in the forward pass or again in the backward pass
    folder: Path | None = None

    @property
    def manifest(self) -> Mapping[str, Any]:
        assert self.code == 0 and self.folder is not None, self.printed
        content: Mapping[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return content

    @property
    def bits(self) -> str:
        """sha256 of the trained weights."""
        return str(self.manifest["files"]["adapter_model.safetensors"]["sha256"])

    @property
    def peft(self) -> Mapping[str, Any]:
        assert self.folder is not None
        content: Mapping[str, Any] = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return content

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that are training steps."""
        return [line for line in self.lines if "loss" in line]

    @property
    def measured(self) -> list[int]:
        """The steps at which held-out loss was measured."""
        return [line["step"] for line in self.lines if "held_out_loss" in line]

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.folder is not None
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@dataclass
class Lab:
    """Runs recipes that are the same but for some values, each once."""

    root: Path
    base: Path
    done: dict[str, Seen] = field(default_factory=dict)

    def recipe(self, changes: Mapping[str, Any], folder: Path) -> Path:
        content: dict[str, Any] = {
            "name": "count",
            "model": {"base": str(self.base), "load_in": "fp32", "max_length": 64},
            "adapter": {"rank": 4, "alpha": 8},
            "stages": {
                "sft": {
                    "kind": "sft",
                    "data": [{"path": str(self.root / "questions.jsonl")}],
                    "held_out": {"fraction": 0.2},
                    "train": {"max_steps": 3, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.01},
                }
            },
        }
        for key, value in changes.items():
            *path, last = key.split(".")
            section = content
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        path_ = folder / "recipe.yaml"
        path_.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path_

    def run(self, changes: Mapping[str, Any] | None = None, *, interrupt_in_step: int | None = None) -> Seen:
        """`finetune sft`. interrupt_in_step: Ctrl-C while this step (from 1) is trained, of one forward pass each."""
        key = json.dumps([changes, interrupt_in_step], sort_keys=True)
        if key not in self.done:
            folder = self.root / f"run{len(list(self.root.glob('run*')))}"
            folder.mkdir()
            with self.counted(interrupt_in_step) as (forwards, blocks):
                code, printed = command("sft", self.recipe(changes or {}, folder), "--runs", folder / "runs")
            found = [path for path in folder.glob("runs/*/sft-*") if path.is_dir()]
            self.done[key] = Seen(code, printed, tuple(forwards), len(blocks), found[-1] if found else None)
        return self.done[key]

    def plan(self, changes: Mapping[str, Any] | None = None) -> str:
        """What `finetune plan` prints: folders, by fingerprint, and estimates."""
        folder = self.root / "plans"
        folder.mkdir(exist_ok=True)
        code, printed = command("plan", self.recipe(changes or {}, folder), "--runs", self.root / "none")
        assert code == 0, printed
        return printed

    @contextlib.contextmanager
    def counted(self, interrupt_in_step: int | None) -> Iterator[tuple[list[tuple[int, ...]], list[int]]]:
        """Count forward passes by torch's own global hook."""
        from torch.nn.modules.module import register_module_forward_pre_hook
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

        forwards: list[tuple[int, ...]] = []
        blocks: list[int] = []

        def look(module: Any, args: Any) -> None:
            if module.training and isinstance(module, LlamaMLP):
                blocks.append(1)
            if module.training and isinstance(module, LlamaDecoderLayer) and module.self_attn.layer_idx == 0:
                forwards.append(tuple(args[0].shape[:2]))
                if len(forwards) == interrupt_in_step:
                    os.kill(os.getpid(), signal.SIGINT)

        hook = register_module_forward_pre_hook(look)
        try:
            yield forwards, blocks
        finally:
            hook.remove()


def command(*args: str | Path) -> tuple[int, str]:
    from finetune.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([str(arg) for arg in args])
    return code, printed.getvalue()


@pytest.fixture(scope="module")
def lab(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    root = tmp_path_factory.mktemp("lab")
    write_jsonl(root / "questions.jsonl", QUESTIONS)
    write_jsonl(root / "twice.jsonl", [*QUESTIONS, *QUESTIONS])
    write_jsonl(root / "others.jsonl", [{"prompt": f"Who is {a}?", "completion": f"{a} is here."} for a in range(20)])
    write_jsonl(root / "named.jsonl", [{"ask": row["prompt"], "say": row["completion"]} for row in QUESTIONS])
    write_jsonl(root / "both.jsonl", [{**row, "text": row["prompt"]} for row in QUESTIONS])
    write_jsonl(root / "long.jsonl", [*QUESTIONS, {"prompt": "Count!", "completion": "1 2 3 4 5 6 7 8 9 " * 20}])
    talk = "Tell me, please. " * 40
    write_jsonl(root / "talk.jsonl", [{"prompt": f"{talk}{a}", "completion": "x"} for a in range(8)])
    return Lab(root, tiny_base)


# What the checks say


def other_bits(lab: Lab, key: str, value: Any, basis: Mapping[str, Any] | None = None) -> Seen:
    """The trained weights are others."""
    changed = lab.run({**(basis or {}), key: value})
    assert changed.bits != lab.run(basis).bits
    return changed


def refused(lab: Lab, changes: Mapping[str, Any], *words: str) -> None:
    seen = lab.run(changes)
    assert seen.code == 2
    assert all(word in seen.printed for word in words), seen.printed


def source(lab: Lab, name: str = "questions.jsonl", **values: Any) -> dict[str, Any]:
    return {S + "data": [{"path": str(lab.root / name), **values}]}


def hub(**values: Any) -> dict[str, Any]:
    return {S + "data": [{"hub": "org/rows", "revision": COMMIT, **values}]}


def hub_rows(lab: Lab, **values: Any) -> list[str]:
    """The rows of a data set as the `datasets` library reads it from a folder with two subsets, two splits each."""
    from finetune.data.prepare import prepare_sft
    from finetune.data.tokenizer import Tokenizer
    from finetune.families.llama3 import LLAMA3

    folder = lab.root / "hub"
    if not folder.is_dir():
        config = "configs:\n"
        for subset in ("easy", "hard"):
            for split in ("train", "test"):
                (folder / subset).mkdir(parents=True, exist_ok=True)
                rows = [{"prompt": f"{subset} {split} {a}", "completion": "yes"} for a in range(9)]
                write_jsonl(folder / subset / f"{split}.jsonl", rows)
            default = "  default: true\n" if subset == "easy" else ""
            config += f"- config_name: {subset}\n{default}  data_files:\n"
            config += "".join(f"  - split: {s}\n    path: {subset}/{s}.jsonl\n" for s in ("train", "test"))
        (folder / "README.md").write_text(f"---\n{config}---\n", encoding="utf-8")
    tokenizer = Tokenizer.load(lab.base)
    prepared = prepare_sft(
        schema.SftStage.model_validate({"kind": "sft", "data": [{"hub": "./hub", **values}]}),
        model=schema.ModelSettings(base=str(lab.base)),
        seed=17,
        locate=lambda path: lab.root / path,
        stage_outputs={},
        family=LLAMA3,
        tokenizer=tokenizer,
        cache=None,
        say=lambda line: None,
    )
    return [tokenizer.decode(prepared.rows.row(row)[0].tolist()) for row in range(len(prepared.rows))]
