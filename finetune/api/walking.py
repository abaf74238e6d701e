"""Run a recipe from Python: the command line's own walk, with a display that lives in the cell where there is one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.api.recipe import PathLike, Recipe, as_recipe
from finetune.api.runs import Run
from finetune.engine.progress import duration
from finetune.errors import InputError, InterruptedRunError
from finetune.execute import run_recipe
from finetune.notebook.page import boxed, heading
from finetune.notebook.place import calm, in_notebook
from finetune.plan.plan import Plan
from finetune.reports.pieces import table


class Results(Mapping[str, Run]):
    """The finished runs of a recipe, by stage, in its order.

    results = ft.run(recipe)
    results["sft"].plot("loss")
    """

    def __init__(self, plan: Plan) -> None:
        self._name = plan.recipe.name
        self._runs = {stage.name: Run(stage.folder) for stage in plan.stages if stage.state == "done"}
        self._to_do = [stage.name for stage in plan.stages if stage.state != "done"]

    def __getitem__(self, stage: str) -> Run:
        if stage not in self._runs:
            raise KeyError(f"no finished run of '{stage}'; there are {', '.join(self._runs) or 'none'}")
        return self._runs[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        lines = [f"{self._name}: {len(self)} stages done", *(f"  {run!r}" for run in self.values())]
        return "\n".join(lines + ([f"  to do: {', '.join(self._to_do)}"] if self._to_do else []))

    def _repr_html_(self) -> str:
        rows = []
        for run in self.values():
            seconds = run.manifest.get("seconds")
            took = None if seconds is None else duration(seconds)
            rows.append((run.name, run.kind, took, run.summary or None, str(run.folder)))
        caption = f"to do: {', '.join(self._to_do)}" if self._to_do else None
        headings = ("stage", "kind", "time", "figures", "folder")
        return boxed(heading(self._name), table(headings, rows, caption=caption, numeric=(2,)))


def run(
    recipe: Recipe | PathLike | Mapping[str, Any],
    runs: PathLike = "runs",
    *,
    until: str | None = None,
    begin: str | None = None,
    kinds: Collection[str] | None = None,
    functions: Mapping[str, Callable[..., float]] | None = None,
) -> Results:
    """Run what is not done of a recipe, and return its finished runs. The same work as `finetune run`, in the same
    folders: what is done is not repeated, what was interrupted goes on.

    runs: folder below which the runs lie. until, begin: the last stage to run, and the first, above which all has to be
    done. kinds: only stages of these kinds and what they read. functions: checkers of kind function by their names,
    each called with (prompt, answer) and returning a score. In a notebook the stages and their curves are shown while
    they run; interrupting the kernel keeps the work, and running the cell again goes on.

    Raises InputError and its kinds, DivergedError, ProofError, InterruptedRunError.

        results = ft.run("recipe.yaml", until="sft")
        results["sft"]
    """
    loaded = as_recipe(recipe).check().loaded
    if kinds is not None:
        kinds = _known_kinds(kinds, {stage.kind for stage in loaded.recipe.stages.values()})
    if not in_notebook():
        return Results(
            run_recipe(loaded, Path(runs), print, kinds=kinds, until=until, begin=begin, functions=functions)
        )
    from finetune.notebook.screen import NotebookScreen

    calm()
    screen = NotebookScreen()
    try:
        plan = run_recipe(
            loaded, Path(runs), screen.say, kinds=kinds, until=until, begin=begin, functions=functions, screen=screen
        )
    except (KeyboardInterrupt, InterruptedRunError) as stopped:
        _let_go(stopped)
        told = _stopped(stopped)
    except BaseException as error:
        _let_go(error)
        raise
    else:
        return Results(plan)
    raise InterruptedRunError(told)


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold. A notebook keeps its last error, and so would keep the model in memory
    while the same cell loads it again."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _known_kinds(kinds: str | Collection[str], present: Collection[str]) -> set[str]:
    chosen = {kinds} if isinstance(kinds, str) else set(kinds)
    if not chosen & set(present):
        raise InputError(f"no stage is of kind {' or '.join(sorted(chosen))}; there are {', '.join(sorted(present))}")
    return chosen


def _stopped(stopped: BaseException) -> str:
    """In one line: where it stood, and how it goes on."""
    where, found, _ = str(stopped).partition(". Run the same")
    return f"{where if found else 'stopped; what was saved is kept'}. Run this cell again to go on from there"
