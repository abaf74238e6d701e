"""Measure runs, and make their report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from finetune.api.answers import BASE
from finetune.api.recipe import PathLike, Recipe
from finetune.api.runs import Run, RunLike
from finetune.durable import rename_file, write_bytes
from finetune.errors import InputError
from finetune.plan.evaluations import Evaluation
from finetune.plan.plan import make_plan
from finetune.quiet import calm_libraries, quiet_libraries


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


def report(run: RunLike | Recipe, out: PathLike = "report.html", *, runs: PathLike = "runs") -> Path:
    """Write the report of a run, or of all finished stages of a recipe, as one HTML file that needs no network.

    Raises InputError where nothing is finished.

        ft.report(recipe, "report.html")
    """
    from finetune.report.page import recipe_page, run_page
    from finetune.report.read import read_run

    if isinstance(run, Recipe):
        stages = make_plan(run.loaded, Path(runs)).stages
        done = [read_run(stage.folder) for stage in stages if stage.state == "done"]
        if not done:
            raise InputError(f"no stage of recipe {run.name} is finished: ft.run(recipe) first")
        page = recipe_page(run.name, done, {stage.name: stage.kind for stage in stages if stage.state != "done"})
    else:
        page = run_page(read_run(Path(run.folder if isinstance(run, Run) else run)))
    target = Path(out).expanduser()
    part = target.with_name(target.name + ".part")
    write_bytes(part, page.encode())
    rename_file(part, target)
    return target
