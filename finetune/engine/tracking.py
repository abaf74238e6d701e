"""Where metrics go: metrics.jsonl in the run folder always, and to the trackers that the recipe's `track` names.

metrics.jsonl is the record. Every tracker is told its lines, each once: what a resumed stage does again is not told
again, and a tracker that the recipe names only since the interruption is told the lines from before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from finetune.errors import InterruptedRunError
from finetune.recipe.settings import MOST_SAMPLES

Metrics = Mapping[str, float | int | str | None]


@dataclass(frozen=True)
class End:
    """How a stage ended. A finished one has results, what was resolved for it, and the folder of what it made."""

    how: Literal["finished", "failed", "interrupted"]
    results: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None


class Tracker(Protocol):
    """One place that a stage's metrics are shown in. number: counts all that it is told, from 0, over all sessions."""

    @property
    def kept(self) -> int | None:
        """How much of what earlier sessions told it has arrived; None = all. Asked once, before anything is told."""

    def log(self, number: int, metrics: Metrics) -> None:
        """A line of metrics.jsonl; several can have the same `step`."""

    def samples(self, number: int, name: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """A table of what the model, or the data, says at a step; the rows have the same keys. It may take fewer."""

    def close(self, end: End) -> None: ...


Opener = Callable[[Mapping[str, Any]], Tracker]
"""What was resolved for the stage (learning rate, steps, device …) -> its tracker, open."""


class Tracking:
    """A stage's trackers; without any, every call does nothing.

    `with tracking:` around the stage closes them, as failed or interrupted where it ended so. They are opened by
    `begin`, when the work is ready to start: an input error before it leaves no trace in them.
    work: keeps, in tracked.jsonl, what each has been told.
    """

    def __init__(self, work: Path, openers: Mapping[str, Opener]) -> None:
        self._told = _Told(work / "tracked.jsonl")
        self._openers = dict(openers)
        self._open: dict[str, Tracker] = {}
        self._line = 0

    def begin(self, resolved: Mapping[str, Any]) -> None:
        """Open the trackers. Raises InputError where one is not installed, or not to be reached."""
        for name, open_tracker in self._openers.items():
            if name not in self._open:
                self._open[name] = open_tracker(resolved)
                if (kept := self._open[name].kept) is not None:
                    self._told.keep(name, kept)

    def catch_up(self, lines: Sequence[Metrics]) -> None:
        """The lines that metrics.jsonl has at the start: all that a resumed stage does not do again."""
        self._line = len(lines)
        for name, tracker in self._open.items():
            for number in range(self._told.lines(name), len(lines)):
                tracker.log(self._told.add({"tracker": name, "lines": number + 1}), lines[number])

    def log(self, metrics: Metrics) -> None:
        """The next line of metrics.jsonl."""
        self._line += 1
        for name, tracker in self._open.items():
            if self._line > self._told.lines(name):
                # First: a kill between the two leaves a point out, where the other order could tell it twice.
                number = self._told.add({"tracker": name, "lines": self._line})
                tracker.log(number, metrics)

    def samples(self, name: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Show a table of samples, unless an earlier session has shown that of this step. rows: read where needed."""
        wanted = [key for key in self._open if step > self._told.step(key, name)]
        taken = list(islice(rows, MOST_SAMPLES)) if wanted else []
        for key in wanted:
            number = self._told.add({"tracker": key, "samples": name, "step": step})
            self._open[key].samples(number, name, step, taken)

    def finish(self, results: Mapping[str, Any], resolved: Mapping[str, Any], folder: Path) -> None:
        """The stage is done and proven: its results, what was resolved for it, and the folder of what it made."""
        self.begin(resolved)  # a stage without steps has not
        self._close(End("finished", results, resolved, folder))

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
        self._close(End("interrupted" if stopped else "failed"))

    def _close(self, end: End) -> None:
        while self._open:
            _, tracker = self._open.popitem()
            tracker.close(end)


def no_tracking() -> Tracking:
    """For a stage that nobody follows; metrics.jsonl is written all the same."""
    return Tracking(Path(), {})


@dataclass
class _Share:
    """What one tracker has been told. marks: one for each thing; count: of them, which is the next one's number."""

    marks: list[Mapping[str, Any]] = field(default_factory=list)
    count: int = 0
    lines: int = 0
    steps: dict[str, int] = field(default_factory=dict)

    def note(self, mark: Mapping[str, Any]) -> None:
        if "kept" in mark:
            marks, self.marks, self.lines, self.steps = self.marks[: mark["kept"]], [], 0, {}
            for one in marks:
                self.note(one)
            self.count = mark["kept"]
            return
        self.marks.append(mark)
        self.count += 1
        self.lines = mark.get("lines", self.lines)
        if "samples" in mark:
            self.steps[mark["samples"]] = mark["step"]


class _Told:
    """What the trackers have been told, by earlier sessions and this one; in a file, one mark a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shares: dict[str, _Share] = {}
        for mark in _whole_lines(path):
            self._share(mark["tracker"]).note(mark)

    def lines(self, tracker: str) -> int:
        """How many lines of metrics.jsonl."""
        return self._share(tracker).lines

    def step(self, tracker: str, samples: str) -> int:
        """The step of the last table of this name, -1 before the first."""
        return self._share(tracker).steps.get(samples, -1)

    def keep(self, tracker: str, count: int) -> None:
        """Of what a tracker was told, only the first `count` have arrived."""
        if count != self._share(tracker).count:
            self._add({"tracker": tracker, "kept": count})

    def add(self, mark: Mapping[str, Any]) -> int:
        """Note what is told next. Returns its number."""
        number = self._share(mark["tracker"]).count
        self._add(mark)
        return number

    def _add(self, mark: Mapping[str, Any]) -> None:
        self._share(mark["tracker"]).note(mark)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(mark) + "\n")

    def _share(self, tracker: str) -> _Share:
        return self._shares.setdefault(tracker, _Share())


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with `step` (optimiser steps done). tracking: is told every line."""

    def __init__(self, path: Path, tracking: Tracking | None = None) -> None:
        self.path, self.tracking = path, tracking

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: those steps will be done, and logged, again."""
        if self.path.is_file():
            kept = 0
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    if json.loads(line)["step"] > step or not line.endswith(b"\n"):
                        break
                except (ValueError, KeyError):
                    break  # a line that a crash cut short
                kept += len(line)
            os.truncate(self.path, kept)  # needs no space, and a kill here loses nothing that is kept
        if self.tracking is not None:
            self.tracking.catch_up(self.read())

    def write(self, metrics: Metrics) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if self.tracking is not None:
            self.tracking.log(metrics)

    def read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file; a last line that a kill cut short is cut off, so that the next stands by itself."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]
