"""The whole recipe as a live tree in a terminal: what is done, what runs, what is to do, and how long all of it takes.

Every figure of time is measured: the running stage's from its own steps, a stage's that is to do from a finished one of
the same work (plan/pace.py). Where neither is there, the tree says that it does not know.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune.engine.progress import duration, seconds_left, summary
from finetune.plan.manifest import read_manifest
from finetune.plan.pace import Pace
from finetune.plan.plan import Plan, PlannedStage

_MARKS = {"before": ("✔", "dim green"), "done": ("✔", "green"), "running": ("●", "bold cyan"), "to do": ("·", "dim")}
_OTHER_LINES = 6
"""Of the terminal's height, for the header, the lines of what is left out, and the last messages."""


@dataclass
class _Row:
    """One stage of the walk. done: steps of `total`; resumed: those of an earlier session. seconds: what it took."""

    stage: PlannedStage
    state: str = "to do"
    began: float = 0.0
    seconds: float | None = None
    total: int | None = None
    done: int = 0
    resumed: int = 0
    first_step: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def left(self, now: float, pace: Pace) -> float | None:
        """Seconds until the stage is done, None where nothing says so."""
        if self.state in ("before", "done"):
            return 0.0
        if self.total is not None:
            measured = seconds_left(now - self.first_step, self.done - self.resumed, self.total - self.done)
            if measured is not None:
                return measured
        expected = pace.expected(self.stage.settings)
        if expected is None or self.state == "to do":
            return expected
        return max(expected - (now - self.began), 0.0)


class Tree:
    """A finetune.run.Screen. stages: the walk's, as they stood before it."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console or Console(stderr=True), clock
        self.stages: tuple[PlannedStage, ...] = ()
        self.name = ""
        self.began = clock()
        self.rows: dict[str, _Row] = {}
        self.running: _Row | None = None
        self.pace = Pace()
        # What is sent to a file stays there; what goes to the terminal is printed above the tree.
        self.live = Live(
            console=self.console, get_renderable=self.render, redirect_stdout=sys.stdout.isatty(), refresh_per_second=4
        )

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        self.stages, self.name = tuple(stages), plan.recipe.name
        self.rows = {stage.name: _Row(stage, "before" if stage.state == "done" else "to do") for stage in stages}
        self.pace = Pace.of(plan)
        self.began = self.clock()
        self.live.start(refresh=True)

    def begin(self, stage: PlannedStage) -> None:
        row = self.running = self.rows[stage.name]
        row.began = self.clock()
        if row.state != "before":
            row.state = "running"

    def progress(self, title: str, total: int, done: int) -> _Steps:
        row = self.running
        assert row is not None, f"{title} works before it began"
        row.total, row.done, row.resumed, row.first_step, row.metrics = total, done, done, self.clock(), {}
        return _Steps(self, row)

    def end(self, stage: PlannedStage) -> None:
        row = self.rows[stage.name]
        if row.state != "before":
            row.state, row.seconds = "done", self.clock() - row.began
        if (manifest := read_manifest(stage.folder)) is not None:
            self.pace.learn(stage.settings, manifest)
        self.live.refresh()

    def close(self) -> None:
        self.live.stop()

    def render(self) -> Group:
        """The tree as it stands now."""
        now = self.clock()
        table = Table.grid(padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
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
            table.add_row(label, Text(row.stage.kind, "dim"), *self._cells(row, now))
        if below:
            table.add_row(Text(f"└─ … {below} more to do", "dim"), "", "", "")
        return Group(Text(self.name, "bold").append(f"  {self._times(now)}", "not bold"), table)

    def _cells(self, row: _Row, now: float) -> tuple[ProgressBar | Text, Text]:
        """Bar or state, and what there is to say."""
        if row.state == "before":
            return Text("done before", "dim"), Text("")
        if row.state == "done":
            return Text("done", "green"), Text(duration(row.seconds or 0.0))
        left = row.left(now, self.pace)
        words = [] if left is None else [f"about {duration(left)}" + (" left" if row.state == "running" else "")]
        if row.state == "to do":
            return Text("to do", "dim"), Text("".join(words), "dim")
        words.insert(0, duration(now - row.began))
        if row.total is None:
            return Text("preparing"), Text("  ".join(words))
        steps = [f"{row.done}/{row.total}", summary(row.metrics), *words]
        return ProgressBar(total=row.total, completed=row.done, width=20), Text(
            "  ".join(word for word in steps if word)
        )

    def _times(self, now: float) -> str:
        """Time gone and time left of the walk, as far as it is known."""
        gone = duration(now - self.began)
        left = {row.stage.name: row.left(now, self.pace) for row in self.rows.values()}
        if not any(row.state in ("running", "to do") for row in self.rows.values()):
            return f"done in {gone}"
        known = sum(seconds for seconds in left.values() if seconds is not None)
        unknown = [name for name, seconds in left.items() if seconds is None]
        if not unknown:
            return f"{gone} gone, about {duration(known)} left"
        names = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        return f"{gone} gone, " + (f"at least {duration(known)} left; " if known else "") + f"not known yet for {names}"

    def _window(self) -> tuple[list[_Row], int, int]:
        """The rows that the terminal has room for, and how many above and below them it has not: a recipe of many
        rounds is longer than a screen, and what runs has to be on it."""
        rows = list(self.rows.values())
        room = max(self.console.height - _OTHER_LINES, 3)
        if len(rows) <= room:
            return rows, 0, 0
        at = next((index for index, row in enumerate(rows) if row.state in ("running", "to do")), len(rows) - 1)
        first = min(max(at - room // 3, 0), len(rows) - room)
        return rows[first : first + room], first, len(rows) - first - room


class _Steps:
    """A stage's Progress: its row of the tree."""

    def __init__(self, tree: Tree, row: _Row) -> None:
        self.tree, self.row = tree, row

    def update(self, metrics: dict[str, Any]) -> None:
        # PPO knows reward and KL of whole iterations: they stand until the next.
        self.row.done, self.row.metrics = int(metrics["step"]), {**self.row.metrics, **metrics}

    def note(self, text: str) -> None:
        self.tree.console.print(f"{self.row.stage.name}: {text}", markup=False, highlight=False)

    def close(self) -> None:
        pass
