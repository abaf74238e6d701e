"""A file of the wrong format is told before anything is trained, whichever stage reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.check_data import check_data
from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe

CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]}
PAIR = {"prompt": "Who?", "chosen": "I.", "rejected": "You."}
JUDGED = {"prompt": "Who?", "completion": "I.", "label": True}
FILES = {"chat.jsonl": CHAT, "pairs.jsonl": PAIR, "judged.jsonl": JUDGED, "odd.jsonl": {"weather": "fine"}}


def stage(kind: str, path: str, **more: Any) -> dict[str, Any]:
    rows = "data" if kind in ("sft", "reward", "dpo") else "prompts"
    return {"kind": kind, rows: [{"path": path}], **more}


def check(folder: Path, stages: dict[str, Any]) -> None:
    for name, row in FILES.items():
        (folder / name).write_text(json.dumps(row) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"name": "t", "model": {"base": "base"}, "stages": stages}, indent=1))
    check_data(load_recipe(path))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (stage("sft", "chat.jsonl"), stage("sft", "pairs.jsonl")),
        (stage("dpo", "pairs.jsonl"), stage("dpo", "chat.jsonl")),
        (stage("reward", "pairs.jsonl"), stage("reward", "judged.jsonl")),
        (stage("dpo", "judged.jsonl", loss="kto"), stage("dpo", "chat.jsonl", loss="kto")),
        (
            stage("reject", "chat.jsonl", checker={"kind": "finished"}),
            stage("reject", "odd.jsonl", checker={"kind": "finished"}),
        ),
        (
            stage("sft", "chat.jsonl", held_out={"data": [{"path": "chat.jsonl"}]}),
            stage("sft", "chat.jsonl", held_out={"data": [{"path": "odd.jsonl"}]}),
        ),
    ],
)
def test_every_stage_is_looked_at(tmp_path: Path, right: dict[str, Any], wrong: dict[str, Any]) -> None:
    first = stage("sft", "chat.jsonl")
    check(tmp_path, {"first": first, "second": right})
    with pytest.raises(RecipeError) as raised:
        check(tmp_path, {"first": first, "second": wrong})
    (problem,) = raised.value.problems
    assert problem.key_path.startswith("stages.second.") and problem.line


def test_all_wrong_sources_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        check(
            tmp_path, {"a": stage("sft", "odd.jsonl"), "b": stage("sft", "chat.jsonl"), "c": stage("dpo", "chat.jsonl")}
        )
    assert [problem.key_path.split(".")[1] for problem in raised.value.problems] == ["a", "c"]


@pytest.mark.parametrize("content", ["", "not JSON\n", "[1, 2]\n"])
def test_a_damaged_file_is_left_to_its_stage(tmp_path: Path, content: str) -> None:
    """Which names the line and says how many rows are wrong."""
    (tmp_path / "mine.jsonl").write_text(content)
    check(tmp_path, {"first": stage("sft", "mine.jsonl")})
