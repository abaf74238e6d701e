"""What a run wrote line by line: its log, its samples, its rows; as lists, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetune.api.recipe import PathLike
from finetune.errors import InputError
from finetune.notebook.page import boxed, heading
from finetune.reports.curves import curve
from finetune.reports.pieces import number, samples, table

if TYPE_CHECKING:
    import pandas


class Rows(Sequence[dict[str, Any]]):
    """Rows of a JSONL file of a run: a list of dicts that notebooks show as text side by side.

    run.samples[0]["answer"]
    run.samples.frame()
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self._rows = list(rows)

    @classmethod
    def read(cls, path: Path) -> Rows:
        """Raises InputError where a line is no JSON object; no rows where there is no file."""
        return cls(json_lines(path))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        return type(self)(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas table."""
        import pandas

        return pandas.DataFrame(self._rows)

    def __repr__(self) -> str:
        keys = ", ".join(self._rows[0]) if self._rows else "none"
        return f"{len(self):,} rows with {keys}"

    def _repr_html_(self) -> str:
        return boxed(samples([_readable(row) for row in self._rows[:10]], limit=10), _of(10, len(self)))


class Log(Rows):
    """metrics.jsonl: what was measured at every step, `step` among it.

    run.log[-1]["loss"]
    run.log.line("held_out_loss")     # [(step, value), …]
    run.log.frame().plot(x="step", y="loss")
    """

    @property
    def names(self) -> tuple[str, ...]:
        """What was measured, in the order in which it first came."""
        return tuple(dict.fromkeys(key for row in self._rows for key in row if key != "step"))

    def line(self, name: str) -> list[tuple[float, float]]:
        """(step, value) wherever `name` was measured. Raises InputError where it never was."""
        points = [
            (float(row["step"]), float(row[name])) for row in self._rows if isinstance(row.get(name), int | float)
        ]
        if not points:
            raise InputError(f"the log has no '{name}'; it has {', '.join(self.names) or 'nothing'}")
        return points

    def _repr_html_(self) -> str:
        names = ["step", *self.names]
        rows = [[row.get(name) for name in names] for row in self._rows[-10:]]
        return boxed(table(names, rows, caption=f"the last of {len(self):,} lines", numeric=range(len(names))))


@dataclass(frozen=True, repr=False)
class Plot:
    """Lines of (x, y) points over common axes. A notebook shows the picture; `save` writes it as SVG.

        ft.Plot({name: run.log.line("loss") for name, run in results.items()}, "Loss", y="nats a token")

    x, y: what the axes are called; y None = the line's own name, where there is one line.
    """

    lines: Mapping[str, Sequence[tuple[float, float]]]
    title: str
    x: str = "step"
    y: str | None = None

    @property
    def svg(self) -> str:
        """The picture."""
        y = self.y or (next(iter(self.lines)).replace("_", " ") if len(self.lines) == 1 else "value")
        return curve(self.lines, title=self.title, x=self.x, y=y)

    def save(self, path: PathLike) -> Path:
        """Write the picture as an SVG file.

        run.plot("loss").save("loss.svg")
        """
        Path(path).write_text(self.svg, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        told = [
            f"{name} {number(points[0][1])} at {self.x} {number(points[0][0])} -> {number(points[-1][1])} at {self.x} "
            f"{number(points[-1][0])}"
            for name, points in self.lines.items()
            if points
        ]
        return f"{self.title}: {'; '.join(told)}"

    def _repr_html_(self) -> str:
        return boxed(self.svg)


def json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    # As bytes: in text an answer's U+2028 or U+0085 would end a line too.
    for at, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}:{at}: not valid JSON ({error}): the run's files were changed") from error
    return rows


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as people read it: of a prompt's samples the texts, best first."""
    found = {key: value for key, value in row.items() if key not in ("samples", "key", "columns", "origin")}
    drawn = row.get("samples")
    if isinstance(drawn, list):
        best = sorted(drawn, key=lambda one: -float(one.get("score") or 0.0))[:2]
        found |= {f"score {_number(one.get('score'))}" + " " * at: one["text"] for at, one in enumerate(best)}
    return found


def _of(shown: int, total: int) -> str:
    return heading("", f"{shown:,} of {total:,} rows") if total > shown else ""


def _number(value: Any) -> str:
    return number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
