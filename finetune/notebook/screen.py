"""A walk over a recipe, shown in the cell that runs it: the stages as a table, and the running one's curves.

Written anew at most every second and a half: a page has its cost too. The curves are those of the stage's own log, so
that they go on where an earlier session stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.engine.progress import duration, seconds_left, summary
from finetune.notebook.growing import Growing
from finetune.notebook.page import boxed, heading
from finetune.plan.manifest import read_manifest
from finetune.plan.pace import Pace
from finetune.plan.plan import Plan, PlannedStage
from finetune.report.pieces import Html, table, text

SECONDS = 1.5
"""Between two pictures."""
_KEPT_LINES = 6
"""Of what was said last."""


@dataclass
class _Row:
    """One stage of the walk. done: steps of `total`; resumed: of those, in an earlier session. seconds: it took."""

    stage: PlannedStage
    state: str
    began: float = 0.0
    seconds: float | None = None
    total: int | None = None
    done: int = 0
    resumed: int = 0
    first_step: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)

    def left(self, now: float, pace: Pace) -> float | None:
        """Seconds until the stage is done, None where nothing says so."""
        if self.state in ("done before", "done"):
            return 0.0
        if self.state == "running" and self.total is not None:
            measured = seconds_left(now - self.first_step, self.done - self.resumed, self.total - self.done)
            if measured is not None:
                return measured
        expected = pace.expected(self.stage.settings)
        if expected is None or self.state != "running":
            return expected
        return max(expected - (now - self.began), 0.0)


class NotebookScreen:
    """A finetune.run.Screen. show: puts HTML (and the same in words) into the cell, in place of what it showed last."""

    def __init__(
        self, show: Callable[[str, str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.show, self.clock = show or _cell(), clock
        self.name = ""
        self.rows: dict[str, _Row] = {}
        self.running: _Row | None = None
        self.lines: list[str] = []
        self.curves: Growing | None = None
        self.pace = Pace()
        self.began = clock()
        self.shown = float("-inf")

    def say(self, line: str) -> None:
        """A line for the user; the last few stay below the table."""
        self.lines = [*self.lines, line][-_KEPT_LINES:]
        self._draw()

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        self.name, self.pace = plan.recipe.name, Pace.of(plan)
        self.rows = {stage.name: _Row(stage, "done before" if stage.state == "done" else "to do") for stage in stages}
        self.began = self.clock()
        self._draw(now=True)

    def begin(self, stage: PlannedStage) -> None:
        row = self.running = self.rows[stage.name]
        row.began = self.clock()
        if row.state != "done before":
            row.state, self.curves = "running", None

    def progress(self, title: str, total: int, done: int) -> _Steps:
        row = self.running
        assert row is not None, f"{title} works before it began"
        row.total, row.done, row.resumed, row.first_step, row.metrics = total, done, done, self.clock(), {}
        # Only now: a stage that goes on has cut the log back to its checkpoint before.
        self.curves = Growing(row.stage.part / "work" / "metrics.jsonl")
        return _Steps(self, row)

    def end(self, stage: PlannedStage) -> None:
        row = self.rows[stage.name]
        if row.state != "done before":
            row.state, row.seconds = "done", self.clock() - row.began
            if self.curves is not None:
                self.curves.path = stage.folder / "metrics.jsonl"
        if (manifest := read_manifest(stage.folder)) is not None:
            self.pace.learn(stage.settings, manifest)
        self._draw(now=True)

    def close(self) -> None:
        for row in self.rows.values():
            row.state = "stopped" if row.state == "running" else row.state
        self._draw(now=True)

    def measured(self, row: _Row, metrics: Mapping[str, Any]) -> None:
        """A step was done."""
        # PPO knows reward and KL of whole iterations: they stand until the next.
        row.done, row.metrics = int(metrics["step"]), {**row.metrics, **metrics}
        self._draw()

    def html(self) -> str:
        """The cell as it stands now."""
        now = self.clock()
        cells = [
            (row.stage.name, row.stage.kind, row.state, *self._steps(row), self._time(row, now))
            for row in self.rows.values()
        ]
        headings = ("stage", "kind", "state", "steps", "figures", "time")
        said = "".join(f'<p class="ft-quiet" style="margin:0">{text(line)}</p>' for line in self.lines)
        return boxed(
            heading(self.name, self._times(now)),
            table(headings, cells),
            "" if self.curves is None else self.curves.html(),
            Html(f"<div>{said}</div>"),
        )

    def words(self) -> str:
        """The same for viewers without HTML."""
        now = self.clock()
        rows = [
            "  ".join(part for part in (f"{row.stage.name}: {row.state}", *self._steps(row)) if part)
            for row in self.rows.values()
        ]
        return "\n".join([f"{self.name}: {self._times(now)}", *rows, *self.lines])

    def _draw(self, *, now: bool = False) -> None:
        time_ = self.clock()
        if self.rows and (now or time_ - self.shown >= SECONDS):
            self.shown = time_
            if self.curves is not None:
                self.curves.update()
            self.show(self.html(), self.words())

    def _steps(self, row: _Row) -> tuple[str, str]:
        if row.total is None or row.state in ("to do", "done before"):
            return ("preparing" if row.state == "running" else ""), ""
        return f"{row.done}/{row.total}", summary(row.metrics)

    def _time(self, row: _Row, now: float) -> str:
        if row.state == "done":
            return duration(row.seconds or 0.0)
        left = row.left(now, self.pace)
        if row.state == "running":
            return duration(now - row.began) + ("" if left is None else f", about {duration(left)} left")
        return f"about {duration(left)}" if row.state == "to do" and left is not None else ""

    def _times(self, now: float) -> str:
        """Time gone and time left of the walk, as far as it is known."""
        gone = duration(now - self.began)
        if any(row.state == "stopped" for row in self.rows.values()):
            return f"stopped after {gone}"
        open_rows = [row for row in self.rows.values() if row.state in ("running", "to do")]
        if not open_rows:
            return f"done in {gone}"
        left = {row.stage.name: row.left(now, self.pace) for row in open_rows}
        known = sum(seconds for seconds in left.values() if seconds is not None)
        unknown = [name for name, seconds in left.items() if seconds is None]
        if not unknown:
            return f"{gone} gone, about {duration(known)} left"
        return f"{gone} gone" + (f", at least {duration(known)} left" if known else "")


class _Steps:
    """A stage's Progress."""

    def __init__(self, screen: NotebookScreen, row: _Row) -> None:
        self.screen, self.row = screen, row

    def update(self, metrics: dict[str, Any]) -> None:
        self.screen.measured(self.row, metrics)

    def note(self, text: str) -> None:
        self.screen.say(f"{self.row.stage.name}: {text}")

    def close(self) -> None:
        pass


def _cell() -> Callable[[str, str], None]:
    """Shows in the cell that runs: first as a display of its own, then in its place."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)

    def show(html: str, words: str) -> None:
        handle.update({"text/html": html, "text/plain": words}, raw=True)

    return show
