"""The whole recipe as a live tree in a terminal: what is done, what runs, what is to do, and how long it takes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
from rich.console import Console, Group
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune.engine.progress import duration, summary
from finetune.engine.walk import Walk, WalkedStage
from finetune.plan.plan import Plan, PlannedStage

_MARKS = {
    "done before": ("✔", "dim green"),
    "done": ("✔", "green"),
    "running": ("●", "bold cyan"),
    "to do": ("·", "dim"),
}
_OTHER_LINES = 6
"""Of the terminal's height, for the header, the lines of what is left out, and the last messages."""
_ROOM_RIGHT = 3
"""Columns that stay free, for the ^C that a terminal writes behind the last line: a new line would shift the tree."""


class Tree:
    """A finetune.execute.Screen. stages: the walk's, as they stood before it."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.walk = console or Console(stderr=True), Walk(clock)
        self.stages: tuple[PlannedStage, ...] = ()
        # What is sent to a file stays there; what goes to the terminal is printed above the tree.
        self.one_terminal = _is_one_terminal()
        self.live = Live(
            console=self.console, get_renderable=self.render, redirect_stdout=self.one_terminal, refresh_per_second=4
        )

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        self.stages = tuple(stages)
        self.walk.open(plan, stages)
        self.live.start(refresh=True)

    def say(self, line: str) -> None:
        """A line on stdout, above the tree where that is on the same terminal. click.echo alone would write into the
        tree: it goes round the redirection, since rich's stand-in for stdout has no encoding."""
        if self.one_terminal:
            self.console.print(Text(line))
        else:
            click.echo(line)

    def begin(self, stage: PlannedStage) -> None:
        self.walk.begin(stage)

    def progress(self, title: str, total: int, done: int) -> _Steps:
        return _Steps(self, self.walk.steps(title, total, done))

    def end(self, stage: PlannedStage) -> None:
        self.walk.end(stage)
        self.live.refresh()

    def close(self) -> None:
        self.live.stop()

    def render(self) -> Constrain:
        """The tree as it stands now."""
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column()  # its texts are cut, so that it alone gives way in a narrow terminal
        shown, above, below = self._window()
        if above:
            table.add_row(Text(f"├─ … {above} above: done", "dim"), "", "", "")
        for index, row in enumerate(shown):
            branch = "└─" if index == len(shown) - 1 and not below else "├─"
            mark, style = _MARKS[row.state]
            label = (
                Text(f"{branch} ")
                .append(f"{mark} ", style)
                .append(row.stage.name, "" if row.state != "to do" else "dim")
            )
            table.add_row(label, Text(row.stage.kind, "dim"), *self._cells(row))
        if below:
            table.add_row(Text(f"└─ … {below} more to do", "dim"), "", "", "")
        header = Text(self.walk.name, "bold").append(f"  {self.walk.times()}", "not bold")
        return Constrain(Group(header, table), self.console.width - _ROOM_RIGHT)

    def _cells(self, row: WalkedStage) -> tuple[ProgressBar | Text, Text]:
        """Bar or state, and what there is to say."""
        if row.state == "done before":
            return Text("done before", "dim"), Text("")
        if row.state == "done":
            return Text("done", "green"), Text(duration(row.seconds or 0.0))
        left = self.walk.left(row)
        words = [] if left is None else [f"about {duration(left)}" + (" left" if row.state == "running" else "")]
        if row.state == "to do":
            return Text("to do", "dim"), _cut("".join(words), "dim")
        words.insert(0, duration(self.walk.gone(row)))
        if row.total is None:
            return Text("preparing"), _cut("  ".join(words))
        steps = [f"{row.done}/{row.total}", summary(row.metrics), *words]
        return ProgressBar(total=row.total, completed=row.done, width=20), _cut(
            "  ".join(word for word in steps if word)
        )

    def _window(self) -> tuple[list[WalkedStage], int, int]:
        """The rows that the terminal has room for, and how many above and below them it has not: a recipe of many
        rounds is longer than a screen, and what runs has to be on it."""
        rows = list(self.walk.stages.values())
        room = max(self.console.height - _OTHER_LINES, 3)
        if len(rows) <= room:
            return rows, 0, 0
        at = next((index for index, row in enumerate(rows) if row.state in ("running", "to do")), len(rows) - 1)
        first = min(max(at - room // 3, 0), len(rows) - room)
        return rows[first : first + room], first, len(rows) - first - room


def _cut(text: str, style: str = "") -> Text:
    """In one line, the end left out where there is no room."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _is_one_terminal() -> bool:
    """Whether stdout and stderr, where the tree is, show on the same terminal."""
    try:
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    except OSError:  # a file, a pipe, or no file at all
        return False


class _Steps:
    """A stage's Progress: its row of the tree."""

    def __init__(self, tree: Tree, row: WalkedStage) -> None:
        self.tree, self.row = tree, row

    def update(self, metrics: dict[str, Any]) -> None:
        self.tree.walk.measured(self.row, metrics)

    def note(self, text: str) -> None:
        self.tree.console.print(f"{self.row.stage.name}: {text}", markup=False, highlight=False)

    def close(self) -> None:
        pass
