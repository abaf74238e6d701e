"""The live tree of a walk, with a clock made by hand and no training."""

from __future__ import annotations

import io
import json
import os
import pty
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune.cli.tree import Tree
from finetune.plan.manifest import write_manifest
from finetune.plan.plan import Plan, make_plan
from finetune.recipe.load import recipe_from_dict

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "intermediate_size": 128,
}  # fmt: skip


class Clock:
    """Seconds that pass only when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def plan_of(folder: Path, stages: dict[str, dict[str, Any]]) -> Plan:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "config.json").write_text(json.dumps(CONFIG))
    (folder / "rows.jsonl").write_text("{}\n")
    recipe = {"name": "chat", "model": {"base": "base"}, "stages": stages}
    return make_plan(recipe_from_dict(recipe, folder), folder / "runs")


def sft(steps: int | None = 10) -> dict[str, Any]:
    return {"kind": "sft", "data": [{"path": "rows.jsonl"}], "train": {"max_steps": steps}}


def tree_of(clock: Clock, height: int = 40) -> Tree:
    return Tree(Console(file=io.StringIO(), force_terminal=True, width=120, height=height, color_system=None), clock)


def shown(tree: Tree) -> list[str]:
    """The tree's lines as they stand now."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(tree.render())
    text: str = console.file.getvalue()
    return [line.rstrip() for line in text.splitlines()]


def finish(plan: Plan, name: str, seconds: float) -> None:
    plan.stage(name).folder.mkdir(parents=True)
    write_manifest(plan.stage(name).folder, {"files": {}, "seconds": seconds, "metrics": {}})


def test_a_walk_from_beginning_to_end(tmp_path: Path, clock: Clock) -> None:
    plan = plan_of(tmp_path, {"first": sft(10), "second": sft(20), "third": sft(None)})
    tree = tree_of(clock)
    tree.open(plan, plan.stages)
    first, second = plan.stages[:2]
    assert shown(tree) == [
        "chat  0:00 gone, not known yet for first, second, third",
        "├─ · first  sft to do",
        "├─ · second sft to do",
        "└─ · third  sft to do",
    ]
    tree.begin(first)
    clock.now += 5
    assert shown(tree)[1] == "├─ ● first  sft preparing 0:05"
    steps = tree.progress("first", 10, 0)
    clock.now += 8
    steps.update({"step": 4, "loss": 1.5})
    assert shown(tree)[0] == "chat  0:13 gone, at least 0:12 left; not known yet for second, third", "2 seconds a step"
    assert "4/10  loss 1.5000  0:13  about 0:12 left" in shown(tree)[1]
    clock.now += 12
    finish(plan, "first", 30.0)
    tree.end(first)
    tree.begin(second)
    lines = shown(tree)
    assert lines[0] == "chat  0:25 gone, at least 1:00 left; not known yet for third", (
        "3 seconds a step in the manifest"
    )
    assert lines[1] == "├─ ✔ first  sft done      0:25"
    assert lines[2] == "├─ ● second sft preparing 0:00  about 1:00 left"
    clock.now += 45
    assert shown(tree)[2].endswith("about 0:15 left")
    for stage in plan.stages[1:]:
        tree.begin(stage)
        tree.end(stage)
    assert shown(tree)[0] == "chat  done in 1:10"
    tree.close()


def test_what_was_done_before_takes_no_time(tmp_path: Path, clock: Clock) -> None:
    stages = {"first": sft(10), "second": sft(20)}
    finish(plan_of(tmp_path, stages), "first", 10.0)
    plan = plan_of(tmp_path, stages)
    tree = tree_of(clock)
    tree.open(plan, plan.stages)
    tree.begin(plan.stages[0])
    tree.end(plan.stages[0])
    assert shown(tree) == [
        "chat  0:00 gone, about 0:20 left",
        "├─ ✔ first  sft done before",
        "└─ · second sft to do       about 0:20",
    ]
    assert tree.stages[0].state == "done", "as it was before the walk"
    tree.close()


def test_resumed_steps_do_not_count_as_fast_ones(tmp_path: Path, clock: Clock) -> None:
    plan = plan_of(tmp_path, {"first": sft(10)})
    tree = tree_of(clock)
    tree.open(plan, plan.stages)
    tree.begin(plan.stages[0])
    steps = tree.progress("first", 10, 6)
    clock.now += 2
    steps.update({"step": 7, "kl": 0.25})
    assert "7/10  KL 0.250  0:02  about 0:06 left" in shown(tree)[1], "one step in 2 seconds, three to go"
    tree.close()


def test_notes_stand_above_the_tree_with_their_stage(tmp_path: Path, clock: Clock) -> None:
    plan = plan_of(tmp_path, {"first": sft(10)})
    tree = tree_of(clock)
    tree.open(plan, plan.stages)
    tree.begin(plan.stages[0])
    tree.progress("first", 10, 0).note("step 0: held-out loss [1.0]")
    tree.close()
    assert "first: step 0: held-out loss [1.0]" in tree.console.file.getvalue()


def test_what_is_said_on_the_same_terminal_stands_above_the_tree(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pseudo-terminal as stdout and stderr: a line begins where the tree was erased, not behind its last row."""
    plan = plan_of(tmp_path, {"first": sft(10)})
    leader, follower = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(follower, "w", encoding="utf-8") as terminal, open(os.dup(follower), "w", encoding="utf-8") as errors:
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setattr("sys.stderr", errors)
        tree = Tree(Console(stderr=True, force_terminal=True, width=100, height=40), clock)
        tree.open(plan, plan.stages)
        tree.say("first: [said] here")
        tree.close()
        drawn = os.read(leader, 65536).decode()
    os.close(leader)
    before, _, after = drawn.partition("first: [said] here")
    assert before.rpartition("\x1b[2K")[2] == "" and "└─" in before, before
    assert "└─" in after


def test_what_is_said_into_a_file_stays_there(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path, {"first": sft(10)})
    tree = tree_of(clock)
    tree.open(plan, plan.stages)
    tree.say("first: said")
    tree.close()
    assert capsys.readouterr().out == "first: said\n"
    assert "said" not in tree.console.file.getvalue()


def test_a_narrow_terminal_cuts_the_figures_and_not_the_names(tmp_path: Path, clock: Clock) -> None:
    """And the last columns stay free: the ^C of a terminal would begin a new line there, and the tree stand twice."""
    plan = plan_of(tmp_path, {"first": sft(10), "second": sft(20)})
    tree = Tree(Console(file=io.StringIO(), force_terminal=True, width=70, height=40, color_system=None), clock)
    tree.open(plan, plan.stages)
    tree.begin(plan.stages[0])
    tree.progress("first", 10, 0).update({"step": 4, "loss": 1.5, "kl": 0.25, "learning_rate": 1e-3, "memory_gib": 1})
    lines = shown(tree)
    assert lines[1].startswith("├─ ● first  sft ") and lines[1].endswith("…"), lines
    assert len(lines[1]) == 67
    tree.close()


def test_what_runs_is_on_the_screen_whatever_its_height(tmp_path: Path, clock: Clock) -> None:
    plan = plan_of(tmp_path, {f"s{number}": sft(number + 1) for number in range(30)})
    tree = tree_of(clock, height=16)
    tree.open(plan, plan.stages)
    for stage in plan.stages[:20]:
        tree.begin(stage)
        tree.end(stage)
    tree.begin(plan.stages[20])
    lines = shown(tree)
    assert len(lines) == 1 + 10 + 2 <= 16
    assert lines[1] == "├─ … 17 above: done"
    assert any("● s20" in line for line in lines)
    assert lines[-1] == "└─ … 3 more to do"
    tree.close()


def test_a_terminal_gets_the_tree_and_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.cli.walk import _screen
    from finetune.execute import Lines

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(_screen(), Lines)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(_screen(), Tree)
