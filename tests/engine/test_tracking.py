"""Trackers without a training: what they are told, when, and what they need."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stage_recipes import QUESTIONS, tiny_base, write_jsonl
from tracked_lab import CHAIN, TRACK, write_recipe

from finetune.engine.lineage import describe_stage, open_tracking, without_absolute_paths
from finetune.engine.tensorboard_tracker import markdown_table
from finetune.engine.tracking import End, MetricsFile, Tracking
from finetune.errors import InputError, InterruptedRunError
from finetune.plan.plan import make_plan
from finetune.recipe.load import load_recipe

__all__ = ["tiny_base"]


def test_what_is_tracked_changes_no_fingerprint(tmp_path: Path, tiny_base: Path) -> None:
    write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
    prints = set()
    for number, track in enumerate(({}, TRACK, {"tensorboard": True}, {"wandb": {"project": "other"}})):
        path = write_recipe(tmp_path, tiny_base, f"r{number}", {"sft": CHAIN["sft"]}, track)
        prints.add(make_plan(load_recipe(path, ()), tmp_path / "runs").stage("sft").fingerprint)
    assert len(prints) == 1


def test_only_the_trackers_asked_for_are_imported(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None = as if not installed."""
    write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
    for name in ("wandb", "tensorboard", "tensorboard.compat.proto"):
        monkeypatch.setitem(sys.modules, name, None)

    def begin(track: Mapping[str, Any]) -> None:
        plan = make_plan(load_recipe(write_recipe(tmp_path, tiny_base, "r", {"sft": CHAIN["sft"]}, track)), tmp_path)
        open_tracking(plan, plan.stage("sft"), tmp_path, print).begin({})

    begin({})
    with pytest.raises(InputError, match=r"pip install 'finetune\[wandb\]'"):
        begin({"wandb": {"project": "p"}})
    with pytest.raises(InputError, match=r"pip install 'finetune\[tensorboard\]'"):
        begin({"tensorboard": True})
    assert not (tmp_path / "tracked.jsonl").exists()


def test_wandb_mode_of_the_environment_only_ever_sends_less(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.engine.wandb_tracker import WandbTracker
    from finetune.recipe.settings import WandbSettings

    write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
    plan = make_plan(load_recipe(write_recipe(tmp_path, tiny_base, "r", {"sft": CHAIN["sft"]}, {})), tmp_path / "runs")
    lineage = describe_stage(plan, plan.stage("sft"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = WandbTracker(WandbSettings(project="p", mode="online", samples=1), lineage, {}, tmp_path, lambda line: None)
    assert run.kept is None
    run.log(0, {"step": 1, "loss": 1.0})
    run.samples(1, "kept", 1, [{"prompt": "p"}])
    run.close(End("finished", {"metrics": {}}, {}, tmp_path))
    assert not list(tmp_path.rglob("*.wandb"))


@dataclass
class Notes:
    """A tracker that writes down what it is told."""

    kept: int | None = None
    lines: list[int] = field(default_factory=list)
    tables: list[tuple[str, int, int]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    end: End | None = None

    def log(self, number: int, metrics: Mapping[str, Any]) -> None:
        self.numbers.append(number)
        self.lines.append(metrics["step"])

    def samples(self, number: int, name: str, step: int, rows: Any) -> None:
        self.numbers.append(number)
        self.tables.append((name, step, len(list(rows))))

    def close(self, end: End) -> None:
        self.end = end


def follow(folder: Path, trackers: Mapping[str, Notes], *, resumed_at: int = -1, until: int) -> None:
    """A session that logs each step and shows a table every second one."""
    tracking = Tracking(folder, {name: lambda _, notes=notes: notes for name, notes in trackers.items()})
    file = MetricsFile(folder / "metrics.jsonl", tracking)
    with tracking:
        tracking.begin({})
        file.rewind(resumed_at)
        for step in range(max(resumed_at, 0) + 1, until + 1):
            file.write({"step": step})
            if step % 2 == 0:
                tracking.samples("said", step, [{"a": 1}] * 3)
        tracking.finish({"loss": 1.0}, {}, folder)


def test_every_line_is_told_once(tmp_path: Path) -> None:
    """A second session does steps 4 to 6 again, and has a tracker more, which is told everything."""
    first, second, other = Notes(), Notes(), Notes()
    follow(tmp_path, {"one": first}, until=6)
    assert first.lines == [1, 2, 3, 4, 5, 6] and first.tables == [("said", 2, 3), ("said", 4, 3), ("said", 6, 3)]
    (tmp_path / "tracked.jsonl").open("ab").write(b'{"tracker": "one", "li')  # a kill cut it short
    follow(tmp_path, {"one": second, "two": other}, resumed_at=3, until=8)
    assert second.lines == [7, 8] and second.tables == [("said", 8, 3)]
    assert other.lines == [1, 2, 3, 4, 5, 6, 7, 8]
    assert first.numbers + second.numbers == list(range(12)) and other.numbers == list(range(11))


def test_what_a_kill_took_from_a_tracker_is_told_again(tmp_path: Path) -> None:
    """Of 9 things told (6 lines, 3 tables), 5 have arrived: lines 1 to 4, and the table of step 2."""
    first, second = Notes(), Notes(kept=5)
    follow(tmp_path, {"one": first}, until=6)
    follow(tmp_path, {"one": second}, resumed_at=3, until=7)
    assert second.lines == [5, 6, 7] and [step for _, step, _ in second.tables] == [4, 6]
    assert second.numbers == [5, 6, 7, 8, 9]
    third = Notes()
    follow(tmp_path, {"one": third}, resumed_at=7, until=8)
    assert third.lines == [8]


def test_the_end_is_told_to_every_tracker(tmp_path: Path) -> None:
    one, two = Notes(), Notes()
    follow(tmp_path, {"one": one, "two": two}, until=1)
    assert one.end == two.end == End("finished", {"loss": 1.0}, {}, tmp_path)
    for error, how in (
        (InterruptedRunError("x"), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError(), "failed"),
    ):
        notes = Notes()
        tracking = Tracking(tmp_path, {"one": lambda _, notes=notes: notes})
        with pytest.raises(type(error)), tracking:
            tracking.begin({})
            raise error
        assert notes.end == End(how)
    unopened = Tracking(tmp_path, {"one": lambda _: pytest.fail("opened before the work was ready")})
    with pytest.raises(InputError), unopened:
        raise InputError("wrong data")


def test_absolute_paths_are_cut_to_their_names() -> None:
    given = {"path": "/home/joanna/secret/pairs.jsonl", "rel": "../data/x.jsonl", "pattern": r"\d+", "n": 3}
    assert without_absolute_paths({"data": [given], "b": r"C:\Users\x\y.jsonl", "c": "~/z/"}) == {
        "data": [{"path": "pairs.jsonl", "rel": "../data/x.jsonl", "pattern": r"\d+", "n": 3}],
        "b": "y.jsonl",
        "c": "z",
    }


def test_cells_of_a_markdown_table_stay_in_their_lines() -> None:
    assert markdown_table([{"a": "x|y\nz", "b": 1}]) == "| a | b |\n| --- | --- |\n| x\\|y ↵ z | 1 |"
