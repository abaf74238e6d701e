"""Measure runs, and make their report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from finetune.api.answers import BASE
from finetune.api.recipe import PathLike, Recipe
from finetune.api.runs import RunLike, as_run
from finetune.durable import rename_file, write_bytes
from finetune.errors import InputError
from finetune.plan.evaluations import Evaluation
from finetune.plan.plan import make_plan
from finetune.quiet import calm_libraries, quiet_libraries
from finetune.report.read import FinishedRun, read_run

_HAVE_ROWS = ("sft", "dpo", "ppo", "grpo", "rloo")
"""Kinds whose runs answer, and have rows of their own to be asked."""


def evaluate(
    run: RunLike,
    task: str,
    *,
    data: PathLike | None = None,
    against: RunLike | None = None,
    base: str | None = None,
    limit: int | None = None,
) -> Evaluation:
    """Measure a finished run, and keep what was found in its folder. The tasks and options of `finetune eval`.

    task: loss, score, reward, win_rate, ifeval, gsm8k, answers or lm_eval. data: a file of rows or prompts. against:
    the other run of a comparison, or "base". base: where the runs' base is, if it is not where they had it. limit: at
    most so many prompts. Raises InputError and its kinds, DivergedError.

        ft.evaluate(results["sft"], "loss", data="held_out.jsonl").results
    """
    quiet_libraries()
    calm_libraries()
    from finetune.evaluation.tasks import evaluate as measure

    other: Path | Literal["base"] | None = None
    if against is not None:
        other = "base" if against == BASE else Path(against)
    place = None if data is None else Path(data)
    return measure(Path(run), task, data=place, against=other, base=base, limit=limit, say=print)


def report(
    run: RunLike | Recipe,
    out: PathLike | None = None,
    *,
    against: RunLike | None = None,
    answers: bool = True,
    base: str | None = None,
    runs: PathLike = "runs",
) -> Path:
    """Write the report of a run, or of all finished stages of a recipe, as one HTML file that needs no network.

    out: None = beside the run's folder. against: another run, to show what differs. answers: a run that has none yet
    is loaded and asked 12 of its held-out rows, before and after; the answers are kept in it. base: where the base is,
    if it is not where the run had it. Returns the file. Raises InputError where nothing is finished.

        ft.report(recipe, "report.html")
        ft.report(results["dpo"], against=results["ppo"])
    """
    from finetune.report.compare import comparison_page, run_names
    from finetune.report.page import recipe_page, run_page

    if isinstance(run, Recipe):
        if against is not None:
            raise InputError("against compares two runs: give one of the recipe's, such as results['sft']")
        stages = make_plan(run.loaded, Path(runs)).stages
        done = [stage.folder for stage in stages if stage.state == "done"]
        if not done:
            raise InputError(f"no stage of recipe {run.name} is finished: ft.run(recipe) first")
        unfinished = {stage.name: stage.kind for stage in stages if stage.state != "done"}
        page = recipe_page(run.name, [_read(folder, answers, base) for folder in done], unfinished)
        usual = done[0].with_name("report.html")
    else:
        folder = as_run(run).folder
        read = _read(folder, answers, base)
        usual = folder.with_name(f"report-{folder.name}.html")
        if against is None:
            page = run_page(read)
        else:
            other = _read(as_run(against).folder, answers, base)
            page = comparison_page([(read, other)], run_names(read, other), {})
            usual = folder.with_name(f"report-{folder.name}-against-{other.folder.name}.html")
    return _write_page(usual if out is None else Path(out).expanduser(), page)


def _read(folder: Path, answers: bool, base: str | None) -> FinishedRun:
    """A run with its answers, asked now where it has none. Why it could not be asked is a note on its page."""
    found = read_run(folder)
    if not answers or found.answered or found.kind not in _HAVE_ROWS:
        return found
    try:
        evaluate(folder, "answers", base=base)
    except InputError as error:
        return replace(found, notes=(*found.notes, f"it could not be asked: {error}"))
    return read_run(folder)


def _write_page(place: Path, page: str) -> Path:
    if (place.parent / "manifest.json").is_file():
        raise InputError(f"{place.parent} is a finished run, whose files do not change: choose another folder")
    if not place.parent.is_dir():
        raise InputError(f"{place}: there is no folder {place.parent}; make it first")
    part = place.with_name(place.name + ".part")
    write_bytes(part, page.encode())
    rename_file(part, place)
    return place
