"""Finished runs in Python: what a run's folder holds, as objects, tables and pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.api.measured import Measured
from finetune.api.recipe import PathLike, Recipe
from finetune.api.rows import Log, Plot, Rows, json_lines
from finetune.errors import InputError
from finetune.notebook.page import boxed, heading, side_by_side
from finetune.plan.evaluations import read_evaluations
from finetune.plan.manifest import check_files, read_manifest
from finetune.plan.plan import make_plan
from finetune.reports.charts import charts
from finetune.reports.pieces import Html, facts, text
from finetune.reports.read import no_run
from finetune.reports.words import figures, kind_in_words, lasted, result

_FIRST_CURVES = ("loss", "held_out_loss", "reward", "score")
"""What `plot` draws where nobody says what, where it is there."""


class Run:
    """The folder of a finished stage, or of a merged or exported model. Can stand wherever a path can.

        run = ft.open_run("runs/chat/sft-0123456789ab")
        run.metrics["held_out"], run.data["rows"], run.plot("loss")

    Reads the manifest now and everything else when it is asked for. Raises InputError where the folder is no finished
    run.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder).expanduser()
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
        return Log(json_lines(self.folder / "metrics.jsonl"))

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
