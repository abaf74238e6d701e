"""Measure runs, and make their report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.api.answers import BASE
from finetune.api.measured import Measured
from finetune.api.recipe import PathLike, Recipe
from finetune.api.runs import RunLike, as_run
from finetune.errors import InputError
from finetune.notebook.place import calm, progress_as_output
from finetune.plan.plan import make_plan
from finetune.recipe.data_settings import DataFormat

if TYPE_CHECKING:
    from finetune.evaluation.judge import RemoteJudge

_ASK = ("reward", "win_rate", "ifeval", "gsm8k", "answers")
"""Tasks that have the run answer."""


def evaluate(
    run: RunLike,
    task: str,
    *,
    data: PathLike | None = None,
    against: RunLike | None = None,
    judge: RunLike | None = None,
    judge_model: str | None = None,
    base: str | None = None,
    limit: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    max_new_tokens: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    data_format: DataFormat = "auto",
    slices: Sequence[str] = (),
    tie: float = 0.0,
    shots: int = 0,
    examples: PathLike | None = None,
    lm_tasks: Sequence[str] = (),
    lm_path: PathLike | None = None,
    lm_chat: bool = False,
) -> Measured:
    """Measure a finished run, and keep what was found in its folder: the tasks and options of `finetune eval`.

    task: loss, score, reward, win_rate, ifeval, gsm8k, answers or lm_eval. data: a file of rows, prompts or problems,
    None = the run's own held-out rows, where the task can use them. against: the other run of a comparison, or "base".
    judge: a reward model's run, or the address of an OpenAI-compatible server, with judge_model its model's name there:
    only then is anything sent, and only there. base: where the runs' base is, if it is not where they had it. limit: at
    most so many rows. temperature and the like: how answers are drawn, None = greedy, with room for what is asked.

    Raises InputError and its kinds, DivergedError, FinetuneError where a judge fails.

        ft.evaluate(results["sft"], "loss", data="held_out.jsonl")
        ft.evaluate(results["dpo"], "win_rate", against=results["sft"], judge=results["helpful"])
    """
    calm()
    from finetune.evaluation import tasks

    changes = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "samples": samples}
    given = {name: value for name, value in {**changes, "seed": seed}.items() if value is not None}
    with progress_as_output():
        found = tasks.evaluate(
            Path(run),
            task,
            data=_path(data),
            against=None if against is None else "base" if against == BASE else Path(against),
            judge=_judge(judge, judge_model),
            base=base,
            limit=limit,
            answering=tasks.usual_answering(task, **given) if given or task in _ASK else None,
            data_format=data_format,
            slices=slices,
            tie=tie,
            shots=shots,
            examples=_path(examples),
            lm_tasks=lm_tasks,
            lm_path=_path(lm_path),
            lm_chat=lm_chat,
            say=print,
        )
    return Measured.of(found)


def _judge(judge: RunLike | None, model: str | None) -> Path | RemoteJudge | None:
    from finetune.evaluation.judge import RemoteJudge

    if isinstance(judge, str) and "://" in judge:
        if model is None:
            raise InputError("judge_model: which model at that address? Its own list is at …/v1/models")
        return RemoteJudge(judge, model)
    if model is not None:
        raise InputError("judge_model belongs to a judge that is an address")
    return None if judge is None else Path(judge)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


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
    from finetune.evaluation.reported import Asking, both_with_answers, with_answers
    from finetune.reports.compare import comparison_page, run_names
    from finetune.reports.page import recipe_page, run_page
    from finetune.reports.place import check_place, write_page

    asking = Asking(None, base, print) if answers else None
    place = None if out is None else check_place(Path(out).expanduser())
    if isinstance(run, Recipe):
        if against is not None:
            raise InputError("against compares two runs: give one of the recipe's, such as results['sft']")
        stages = make_plan(run.loaded, Path(runs)).stages
        done = [stage.folder for stage in stages if stage.state == "done"]
        if not done:
            raise InputError(f"no stage of recipe {run.name} is finished: ft.run(recipe) first")
        unfinished = {stage.name: stage.kind for stage in stages if stage.state != "done"}
        place = place or check_place(done[0].with_name("report.html"))
        with progress_as_output():
            finished = [with_answers(folder, asking) for folder in done]
        page = recipe_page(run.name, finished, unfinished)
    else:
        folder = as_run(run).folder
        if against is None:
            place = place or check_place(folder.with_name(f"report-{folder.name}.html"))
            with progress_as_output():
                page = run_page(with_answers(folder, asking))
        else:
            other = as_run(against).folder
            place = place or check_place(folder.with_name(f"report-{folder.name}-against-{other.name}.html"))
            with progress_as_output():
                both = both_with_answers(folder, other, asking)
            page = comparison_page([both], run_names(*both), {})
    write_page(place, page)
    return place
