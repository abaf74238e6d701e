"""A tiny policy and two reward models, made once, and a function that runs a reject stage on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_recipes import PAIRS, QUESTIONS, reward_stage, sft_stage, train, write_jsonl

from finetune.execute import run_recipe
from finetune.recipe.load import load_recipe

Rows = list[dict[str, Any]]

ABOVE = {
    "sft": sft_stage(
        train=train(max_steps=30, batch_size=8, micro_batch_size=8, learning_rate=0.01, eval_every=30),
        held_out={"fraction": 0.0},
    ),
    "helpful": reward_stage(start_from="sft"),
    "safe": reward_stage(data=[{"path": "swapped.jsonl"}]),
}


@dataclass(frozen=True)
class Run:
    """A finished recipe. folders: by stage."""

    folders: Mapping[str, Path]
    said: Sequence[str]

    def manifest(self, stage: str = "best") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folders[stage] / "manifest.json").read_text())
        return found

    def lines(self, name: str = "samples.jsonl", stage: str = "best") -> Rows:
        text = (self.folders[stage] / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    def kept(self, stage: str = "best") -> list[list[dict[str, Any]]]:
        """Of each prompt the samples that were kept, the best first."""
        found = [[sample for sample in line["samples"] if "kept" in sample] for line in self.lines(stage=stage)]
        return [sorted(samples, key=lambda sample: sample["kept"]) for samples in found]


@dataclass
class RejectLab:
    folder: Path
    base: Path

    def recipe(
        self, stages: Mapping[str, Any], changes: Mapping[str, Any] | None = None, *, above: bool = True
    ) -> Path:
        """A recipe of the given stages, with sft, helpful and safe above them; changes: of the section `model`."""
        content = {
            "name": "lab",
            "model": {"base": str(self.base), "load_in": "fp32", "max_length": 128, **(changes or {})},
            "adapter": {"rank": 4, "alpha": 8},
            "stages": {
                **(ABOVE if above else {}),
                **stages,
            },
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def run(
        self,
        stages: Mapping[str, Any],
        changes: Mapping[str, Any] | None = None,
        *,
        above: bool = True,
        functions: Mapping[str, Callable[..., float]] | None = None,
    ) -> Run:
        said: list[str] = []
        loaded = load_recipe(self.recipe(stages, changes, above=above), ())
        plan = run_recipe(loaded, self.folder / "runs", said.append, functions=functions)
        return Run({stage.name: stage.folder for stage in plan.stages}, said)

    def reject(self, **settings: Any) -> Run:
        """One reject stage, called best."""
        return self.run({"best": reject_stage(**settings)})


def reject_stage(**changes: Any) -> dict[str, Any]:
    """24 prompts, 4 answers each, of up to 12 tokens, judged by `helpful` unless there is a checker."""
    judge = {} if "checker" in changes else {"reward": "helpful"}
    return {
        "kind": "reject",
        "policy": "sft",
        "prompts": [{"path": "prompts.jsonl"}],
        "samples": 4,
        "max_new_tokens": 12,
        "rows_at_once": 16,
        **judge,
        **changes,
    }


PROMPTS: Rows = [
    {"prompt": f"What is {number}?", "answer": f"#### {number}", "safety": number % 6 == 0} for number in range(24)
]


@pytest.fixture(scope="session")
def reject_lab(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> RejectLab:
    folder = tmp_path_factory.mktemp("reject")
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    for name, rows in (("pairs", PAIRS), ("questions", QUESTIONS), ("swapped", swapped), ("prompts", PROMPTS)):
        write_jsonl(folder / f"{name}.jsonl", rows)
    lab = RejectLab(folder, tiny_base)
    lab.run({})
    return lab
