from __future__ import annotations

from pathlib import Path
from typing import Any

GOOD = """\
name: chat
model: {base: org/model}
stages:
  sft: {kind: sft, data: [{path: rows.jsonl}, {hub: org/set}], held_out: {data: [{path: rows.jsonl}]}}
  more: {kind: sft, start_from: sft, data: [{path: rows.jsonl}]}
"""


def test_a_right_recipe(finetune: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    before = sorted(tmp_path.iterdir())
    done = finetune("check", "recipe.yaml", "--set", "model.load_in=fp32")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "recipe.yaml is right\n"
        "  name    chat\n"
        f"  base    org/model (hub id, not looked up; no folder of that name at {tmp_path / 'org/model'}), "
        "loaded in fp32\n"
        "  stages  sft (sft), 3 data sources\n"
        "          more (sft), 1 data source\n"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_everything_wrong_is_told_with_exit_2(finetune: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD.replace("kind: sft, start", "knid: sft, start").replace("name", "nane"))
    done = finetune("check", "recipe.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "recipe.yaml:1: name: missing key: a recipe needs it (a name of up to 64 letters, digits, '.', '_' and '-') "
        "(is 'nane' meant to be 'name'?)",
        "recipe.yaml:1: nane: unknown key (did you mean 'name'?)",
        "recipe.yaml:5: stages.more.kind: missing key: stage more, which begins here, needs it "
        "(sft, reward, dpo, reject, ppo, grpo, rloo, average) (is 'knid' meant to be 'kind'?)",
    ]


def test_missing_files_are_told(finetune: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GOOD.replace("org/model", "./base"))
    done = finetune("check", "recipe.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        ["recipe.yaml:2", "model.base"],
        ["recipe.yaml:4", "stages.sft.data[0].path"],
        ["recipe.yaml:4", "stages.sft.held_out.data[0].path"],
        ["recipe.yaml:5", "stages.more.data[0].path"],
    ]
    assert "Traceback" not in done.stderr


def test_no_such_recipe(finetune: Any) -> None:
    done = finetune("check", "gone.yaml")
    assert done.returncode == 2
    assert done.stderr == "Error: gone.yaml: no such file (`finetune init` writes a recipe to begin with)\n"
