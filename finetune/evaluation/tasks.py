"""One door to every measurement of a finished run, by the task's name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from finetune.chat.model import Answering
from finetune.errors import InputError
from finetune.evaluation.answers import write_answers
from finetune.plan.evaluations import TASKS, Evaluation
from finetune.recipe.words import did_you_mean

Say = Callable[[str], None]


def evaluate(
    run: Path,
    task: str,
    *,
    data: Path | None = None,
    against: Path | Literal["base"] | None = None,
    base: str | None = None,
    limit: int | None = None,
    answering: Answering | None = None,
    say: Say,
) -> Evaluation:
    """Measure `run`, a finished run's folder, and keep what was found in it.

    data: a file of rows or prompts. against: another run, or the bare base. base: where the runs' base is, if it is not
    where they had it. limit: at most so many prompts. Raises InputError and its kinds, DivergedError.
    """
    match task:
        case "answers":
            return write_answers(run, prompts=data, limit=limit or 12, base=base, answering=answering, say=say)
    hint = did_you_mean(task, TASKS) or f"there are {', '.join(TASKS)}"
    raise InputError(f"no task '{task}' ({hint})")
