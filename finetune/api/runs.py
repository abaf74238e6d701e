"""Finished runs in Python: what a run's folder holds, as objects, tables and pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetune.api.measured import Measured
from finetune.api.recipe import PathLike, Recipe
from finetune.errors import InputError
from finetune.notebook.page import boxed, heading, side_by_side
from finetune.plan.evaluations import read_evaluations
from finetune.plan.manifest import check_files, read_manifest
from finetune.plan.plan import make_plan
from finetune.report.charts import charts
from finetune.report.curves import curve
from finetune.report.pieces import Html, facts, number, samples, table, text
from finetune.report.read import no_run
from finetune.report.words import figures, kind_in_words, lasted, result

if TYPE_CHECKING:
    import pandas

_FIRST_CURVES = ("loss", "held_out_loss", "reward", "score")
"""What `plot` draws where nobody says what, where it is there."""


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
        return cls(_json_lines(path))

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
    """Curves over steps. A notebook shows the picture; `save` writes it as SVG."""

    lines: Mapping[str, Sequence[tuple[float, float]]]
    title: str

    @property
    def svg(self) -> str:
        y = next(iter(self.lines)) if len(self.lines) == 1 else "value"
        return curve(self.lines, title=self.title, x="step", y=y.replace("_", " "))

    def save(self, path: PathLike) -> Path:
        """Write the picture as an SVG file.

        run.plot("loss").save("loss.svg")
        """
        Path(path).write_text(self.svg, encoding="utf-8")
        return Path(path)

    def __repr__(self) -> str:
        told = [
            f"{name} {number(points[0][1])} at step {points[0][0]:.0f} -> {number(points[-1][1])} at step "
            f"{points[-1][0]:.0f}"
            for name, points in self.lines.items()
        ]
        return f"{self.title}: {'; '.join(told)}"

    def _repr_html_(self) -> str:
        return boxed(self.svg)


class Run:
    """The folder of a finished stage, or of a merged or exported model. Can stand wherever a path can.

        run = ft.open_run("runs/chat/sft-0123456789ab")
        run.metrics["held_out"], run.data["rows"], run.plot("loss")

    Reads the manifest now and everything else when it is asked for. Raises InputError where the folder is no finished
    run.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise InputError(no_run(self.folder))
        self.manifest: Mapping[str, Any] = manifest

    @property
    def name(self) -> str:
        """The stage's name; of a merged or exported model, the names of what it was made from."""
        return str(self.manifest.get("stage") or self.manifest["name"])

    @property
    def recipe_name(self) -> str:
        return str(self.manifest["recipe"]["name"])

    @property
    def kind(self) -> str:
        """sft, reward, dpo, reject, ppo, …, merged, or what it was exported to."""
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        """What the result depends on, as one hash; empty for what was merged or exported."""
        return str(self.manifest.get("fingerprint", ""))

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the stage reported at its end."""
        found: Mapping[str, Any] = self.manifest.get("metrics") or {}
        return found

    @property
    def data(self) -> Mapping[str, Any]:
        """What became of the data: sources with digests, rows, lengths, what was left out."""
        found: Mapping[str, Any] = self.manifest.get("data") or {}
        return found

    @property
    def evaluations(self) -> list[Measured]:
        """What `ft.evaluate` measured of this run, the oldest first."""
        return [Measured.of(found) for found in read_evaluations(self.folder)]

    @cached_property
    def log(self) -> Log:
        """metrics.jsonl."""
        return Log(_json_lines(self.folder / "metrics.jsonl"))

    @cached_property
    def samples(self) -> Rows:
        """Answers that were sampled and scored while the stage worked: of ppo, grpo, rloo and reject stages."""
        return Rows.read(self.folder / "samples.jsonl")

    @cached_property
    def rows(self) -> Rows:
        """The rows that a reject stage kept for stages below it."""
        return Rows.read(self.folder / "rows.jsonl")

    @property
    def summary(self) -> str:
        """The figures that say in short how it went: held-out loss 3.388 → 0.02353."""
        return ", ".join(f"{figure.name} {figure}" for figure in figures(self.manifest))

    def plot(self, *names: str) -> Plot:
        """Curves over steps of what the log has under these names. Raises InputError.

        run.plot("loss", "held_out_loss")
        run.plot("reward")
        """
        chosen = names or tuple(name for name in _FIRST_CURVES if name in self.log.names)[:2]
        title = f"{self.name}: {' and '.join(name.replace('_', ' ') for name in chosen)}"
        return Plot({name: self.log.line(name) for name in chosen}, title)

    def check(self) -> Run:
        """Compare every file with the hash in the manifest. Raises InputError naming the first that differs."""
        check_files(self.folder, self.manifest)
        return self

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        seconds = self.manifest.get("seconds")
        took = "" if seconds is None else f", {lasted(seconds)}"
        return f"Run {self.name} ({self.kind}{took}) in {self.folder}" + (f": {self.summary}" if self.summary else "")

    def _repr_html_(self) -> str:
        base = self.manifest.get("base") or {}
        seconds = self.manifest.get("seconds")
        about = [
            ("base", base.get("name")),
            ("took", None if seconds is None else lasted(seconds)),
            *((figure.name, str(figure)) for figure in figures(self.manifest)),
            ("folder", str(self.folder)),
        ]
        drawn, _ = charts(self.log, self.manifest)
        return boxed(
            heading(f"{self.recipe_name} / {self.name}", kind_in_words(self.manifest)),
            Html(f"<p>{text(result(self.manifest))}</p>"),
            facts([(name, value) for name, value in about if value is not None]),
            side_by_side(drawn),
        )


RunLike = Run | PathLike
"""A run, or its folder."""


def open_run(
    run: Run | Recipe | PathLike, stage: str | None = None, *, runs: PathLike = "runs", set: str | Sequence[str] = ()
) -> Run:
    """A finished run: by its folder, or by a recipe (an object or a file) and a stage's name.

    stage: None = the only stage that is done. set: for a recipe file, as for `ft.Recipe.load`. Raises InputError.

        ft.open_run("runs/chat/sft-0123456789ab")
        ft.open_run(recipe, "sft")
    """
    if isinstance(run, Run):
        return run
    if isinstance(run, Recipe) or Path(run).is_file():
        recipe = run if isinstance(run, Recipe) else Recipe.load(run, set)
        return _of_recipe(recipe, stage, Path(runs))
    if stage is not None:
        raise InputError(f"stage={stage!r} belongs to a recipe; {os.fspath(run)} is no recipe file")
    return Run(run)


def as_run(run: RunLike) -> Run:
    return run if isinstance(run, Run) else Run(run)


def _of_recipe(recipe: Recipe, name: str | None, runs: Path) -> Run:
    plan = make_plan(recipe.loaded, runs)
    states = {stage.name: stage.state for stage in plan.stages}
    done = [stage for stage, state in states.items() if state == "done"]
    if name is None:
        if len(done) != 1:
            raise InputError(f"recipe {recipe.name}: say which stage; done are {', '.join(done) or 'none'}")
        name = done[0]
    if name not in states:
        raise InputError(f"recipe {recipe.name} has no stage '{name}'; it has {', '.join(states)}")
    if states[name] != "done":
        raise InputError(f"stage {name} of recipe {recipe.name} is not finished: ft.run(recipe) goes on with it")
    return Run(plan.stage(name).folder)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
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
