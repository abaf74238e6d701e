"""A walk over a recipe, shown in the cell that runs it: the stages as a table, and the running one's curves.

Written anew at most every second and a half: a page has its cost too. The curves are those of the stage's own log, so
that they go on where an earlier session stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.engine.progress import duration, summary
from finetune.engine.walk import Walk, WalkedStage
from finetune.notebook.growing import Growing
from finetune.notebook.page import boxed, heading
from finetune.plan.plan import Plan, PlannedStage
from finetune.reports.pieces import Html, table, text

SECONDS = 1.5
"""Between two pictures."""
_KEPT_LINES = 6
"""Of what was said last."""


class NotebookScreen:
    """A finetune.execute.Screen. show: puts HTML, and the same in words, into the cell, in place of what was there."""

    def __init__(
        self, show: Callable[[str, str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.show, self.clock, self.walk = show or _cell(), clock, Walk(clock)
        self.lines: list[str] = []
        self.curves: Growing | None = None
        self.shown = float("-inf")

    def say(self, line: str) -> None:
        """A line for the user; the last few stay below the table."""
        self.lines = [*self.lines, line][-_KEPT_LINES:]
        self._draw()

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        self.walk.open(plan, stages)
        self._draw(now=True)

    def begin(self, stage: PlannedStage) -> None:
        if self.walk.begin(stage).state == "running":
            self.curves = None

    def progress(self, title: str, total: int, done: int) -> _Steps:
        row = self.walk.steps(title, total, done)
        # Only now: a stage that goes on has cut the log back to its checkpoint before.
        self.curves = Growing(row.stage.part / "work" / "metrics.jsonl")
        return _Steps(self, row)

    def end(self, stage: PlannedStage) -> None:
        if self.walk.end(stage).state == "done" and self.curves is not None:
            self.curves.path = stage.folder / "metrics.jsonl"
        self._draw(now=True)

    def close(self) -> None:
        self.walk.stop()
        self._draw(now=True)

    def measured(self, row: WalkedStage, metrics: Mapping[str, Any]) -> None:
        """A step was done."""
        self.walk.measured(row, metrics)
        self._draw()

    def html(self) -> str:
        """The cell as it stands now."""
        cells = [
            (row.stage.name, row.stage.kind, row.state, *map(_unbroken, self._steps(row)), self._time(row))
            for row in self.walk.stages.values()
        ]
        headings = ("stage", "kind", "state", "steps", "figures", "time")
        said = "".join(f'<p class="ft-quiet" style="margin:0">{text(line)}</p>' for line in self.lines)
        return boxed(
            heading(self.walk.name, self.walk.times()),
            table(headings, cells),
            "" if self.curves is None else self.curves.html(),
            Html(f"<div>{said}</div>"),
        )

    def words(self) -> str:
        """The same for viewers without HTML."""
        rows = [
            "  ".join(part for part in (f"{row.stage.name}: {row.state}", *self._steps(row)) if part)
            for row in self.walk.stages.values()
        ]
        return "\n".join([f"{self.walk.name}: {self.walk.times()}", *rows, *self.lines])

    def _draw(self, *, now: bool = False) -> None:
        time_ = self.clock()
        if self.walk.stages and (now or time_ - self.shown >= SECONDS):
            self.shown = time_
            if self.curves is not None:
                self.curves.update()
            self.show(self.html(), self.words())

    def _steps(self, row: WalkedStage) -> tuple[str, str]:
        if row.total is None or row.state in ("to do", "done before"):
            return ("preparing" if row.state == "running" else ""), ""
        return f"{row.done}/{row.total}", summary(row.metrics)

    def _time(self, row: WalkedStage) -> str:
        if row.state == "done":
            return duration(row.seconds or 0.0)
        left = self.walk.left(row)
        if row.state == "running":
            return duration(self.walk.gone(row)) + ("" if left is None else f", about {duration(left)} left")
        return f"about {duration(left)}" if row.state == "to do" and left is not None else ""


class _Steps:
    """A stage's Progress."""

    def __init__(self, screen: NotebookScreen, row: WalkedStage) -> None:
        self.screen, self.row = screen, row

    def update(self, metrics: dict[str, Any]) -> None:
        self.screen.measured(self.row, metrics)

    def note(self, text: str) -> None:
        self.screen.say(f"{self.row.stage.name}: {text}")

    def close(self) -> None:
        pass


def _unbroken(figures: str) -> str:
    """A line may end between figures, which stand two spaces apart, not inside one."""
    return "  ".join(figure.replace(" ", "\N{NO-BREAK SPACE}") for figure in figures.split("  "))


def _cell() -> Callable[[str, str], None]:
    """Shows in the cell that runs: first as a display of its own, then in its place."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)

    def show(html: str, words: str) -> None:
        handle.update({"text/html": html, "text/plain": words}, raw=True)

    return show
