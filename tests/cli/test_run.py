"""`finetune run` and `plan` as a user sees them: parts of a recipe, dry runs, reasons, the summary."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Run, files_below, finetune
from stage_recipes import dpo_stage, reward_stage, sft_stage, tiny_base, train, write_recipe

__all__ = ["finetune", "tiny_base", "write_recipe"]

STAGES = {
    "sft": sft_stage(train=train(max_steps=2)),
    "helpful": reward_stage(start_from="sft", train=train(max_steps=2)),
    "dpo": dpo_stage(start_from="sft", train=train(max_steps=2)),
}


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_recipe(STAGES)
    return Path("recipe.yaml")


def test_a_dry_run_says_what_and_why_and_writes_nothing(finetune: Run, recipe: Path, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    dry = finetune("run", recipe, "--until", "helpful", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert [line.split(":")[0] for line in dry.out.splitlines()[:4]] == [
        "sft (sft)",
        "  why",
        "helpful (reward)",
        "  why",
    ]
    assert dry.out.count("why: never run") == 2
    assert "2 of 2 stages would run. This was a dry run: nothing was written." in dry.out
    assert files_below(tmp_path) == before


def test_parts_of_a_recipe_and_why_the_rest_would_run(finetune: Run, recipe: Path, tmp_path: Path) -> None:
    refused = finetune("run", recipe, "--from", "dpo")
    assert refused.code == 2
    assert "--from dpo: sft, helpful above it are not done" in refused.err
    assert not (tmp_path / "runs").exists()
    assert "did you mean 'helpful'?" in finetune("run", recipe, "--until", "helpfull").err

    done = finetune("run", recipe, "--until", "helpful")
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["stage", "-" * 9, "sft", "helpful"]
    assert rows[2].split("|")[3].strip() == "done" and "accuracy" in rows[3]
    assert (tmp_path / "runs" / "tiny" / "summary.md").read_text() in done.out

    plan = finetune("plan", recipe, "--set", "stages.helpful.train.learning_rate=0.001").out
    assert f"\nruns: {tmp_path / 'runs'}\nsft (sft): done\n  folder" in plan
    assert "\nmemory: what a stage puts on the device; Python and its libraries come on top" in plan
    for command in ("plan", "show"):
        elsewhere = finetune(command, recipe, "--runs", "elsewhere").out
        assert f"runs: {tmp_path / 'elsewhere'}, which does not exist\n" in elsewhere
    assert finetune("show", recipe).out.startswith(f"runs: {tmp_path / 'runs'}\nsft (sft): done")
    assert "helpful (reward, reads sft): to do\n  why         train.learning_rate 0.005 -> 0.001\n" in plan
    assert "dpo (dpo, reads sft): to do\n  why         never run\n" in plan
    assert plan.endswith("1 done, 2 to do\n")

    kept = files_below(tmp_path)
    dry = finetune("run", recipe, "--dry-run").out
    assert "sft (sft): already done, nothing to do" in dry and "1 of 3 stages would run" in dry
    assert files_below(tmp_path) == kept

    rest = finetune("run", recipe, "--from", "dpo")
    assert "sft" not in [line.split(":")[0] for line in rest.out.splitlines()], "only what was asked for"
    states = {entry["name"]: entry["state"] for entry in json.loads(finetune("show", recipe, "--json").out)}
    assert states == {"sft": "done", "helpful": "done", "dpo": "done"}
    again = finetune("run", recipe)
    assert again.out.count("done before") == 3, "nothing is repeated"


def test_a_kind_runs_up_to_there_and_prints_no_summary(finetune: Run, recipe: Path, tmp_path: Path) -> None:
    assert finetune("reward", recipe).code == 0
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "runs" / "tiny").iterdir()) == ["helpful", "sft"]
    none = finetune("reject", recipe)
    assert none.code == 2 and "has no stage of kind reject; it has dpo, reward, sft" in none.err


@pytest.mark.slow
def test_a_terminal_shows_the_whole_walk(recipe: Path, tmp_path: Path, root: Path) -> None:
    """A real terminal: the tree is drawn there, and what goes to a file has nothing of it."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "xterm"}
    command = [sys.executable, "-m", "finetune.cli.main", "run", str(recipe), "--until", "sft"]
    with (tmp_path / "out.txt").open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=follower, cwd=tmp_path, env=environment)
        os.close(follower)
        seen = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other side is closed
                break
            seen += part
        assert child.wait(timeout=120) == 0
    os.close(leader)
    drawn = seen.decode(errors="replace")
    assert "not known yet for sft" in drawn and "└─" in drawn and "done in" in drawn
    printed = (tmp_path / "out.txt").read_text()
    assert "sft: done: runs/tiny/sft-" in printed and "| sft " in printed
    assert "└─" not in printed and "\x1b" not in printed


def test_the_guide_names_what_there_is(root: Path) -> None:
    """docs/running.md: every command and option in it exists, and every option of `run` is in it."""
    import re

    from finetune.cli.kinds import sft
    from finetune.cli.main import COMMANDS
    from finetune.cli.run import run
    from finetune.cli.show import show

    text = (root / "docs" / "running.md").read_text(encoding="utf-8")
    options = {option for command in (run, show, sft) for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= options
    assert {"--until", "--from", "--dry-run", "--set", "--runs"} <= set(re.findall(r"--[a-z][a-z-]*", text))
    table = text.partition("| command |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(?:finetune )?([a-z]+)[` ]", table))
    assert named <= set(COMMANDS)
    assert {"sft", "reward", "reject", "dpo", "ppo", "grpo", "rloo", "average", "run", "plan", "show"} <= named
