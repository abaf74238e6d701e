"""One door to every measurement of a finished run, by the task's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from finetune.chat.model import Answering
from finetune.errors import InputError
from finetune.evaluation import gsm8k, ifeval
from finetune.evaluation.answers import write_answers
from finetune.evaluation.judge import RemoteJudge
from finetune.evaluation.loss import measure_file
from finetune.evaluation.measurement import opened
from finetune.evaluation.reward import mean_reward
from finetune.evaluation.win_rate import win_rate
from finetune.plan.evaluations import TASKS, Evaluation
from finetune.recipe.data_settings import DataFormat
from finetune.recipe.words import did_you_mean

Say = Callable[[str], None]

_READS = {
    "loss": {"data", "against", "data_format", "limit"},
    "score": {"data", "data_format", "slices", "limit"},
    "reward": {"data", "against", "judge", "data_format", "limit", "answering"},
    "win_rate": {"data", "against", "judge", "data_format", "limit", "answering", "tie"},
    "ifeval": {"data", "limit", "answering"},
    "gsm8k": {"data", "limit", "answering", "shots", "examples"},
    "answers": {"data", "limit", "answering"},
    "lm_eval": {"limit", "shots", "lm_tasks", "lm_path", "lm_chat"},
}
"""Which of the options a task reads; the others are refused rather than passed over."""
_NEEDS = {
    "loss": ("data",),
    "score": ("data",),
    "reward": ("judge",),
    "win_rate": ("against", "judge"),
    "ifeval": ("data",),
    "gsm8k": ("data",),
    "lm_eval": ("lm_tasks",),
}
_DATA = {
    "loss": "a file of rows with answers",
    "score": "a file of rows with answers, or of comparisons",
    "ifeval": "the prompts of google/IFEval, or a file of that form",
    "gsm8k": "openai/gsm8k as a file: rows of question and answer",
}


def evaluate(
    run: Path,
    task: str,
    *,
    data: Path | None = None,
    against: Path | Literal["base"] | None = None,
    judge: Path | RemoteJudge | None = None,
    base: str | None = None,
    limit: int | None = None,
    answering: Answering | None = None,
    data_format: DataFormat = "auto",
    slices: Sequence[str] = (),
    tie: float = 0.0,
    shots: int = 0,
    examples: Path | None = None,
    lm_tasks: Sequence[str] = (),
    lm_path: Path | None = None,
    lm_chat: bool = False,
    say: Say,
) -> Evaluation:
    """Measure `run`, a finished run's folder, and keep what was found in it.

    data: a file of rows, prompts or problems; None = the run's own held-out rows, where the task can use them. against:
    another run, or the bare base. judge: a reward model's run, or for win_rate a language model too. base: where the
    runs' base is, if it is not where they had it. limit: at most so many rows. answering: None = `usual_answering`.
    slices, tie, shots, examples, lm_*: see the tasks' own functions. Raises InputError and its kinds (an
    option that the task does not read is one), DivergedError, FinetuneError where a judge fails.
    """
    if task not in TASKS:
        hint = did_you_mean(task, TASKS) or f"there are {', '.join(TASKS)}"
        raise InputError(f"no task '{task}' ({hint})")
    options: dict[str, Any] = {
        "data": data, "against": against, "judge": judge, "limit": limit, "answering": answering,
        "data_format": None if data_format == "auto" else data_format, "slices": slices, "tie": tie, "shots": shots,
        "examples": examples, "lm_tasks": lm_tasks, "lm_path": lm_path, "lm_chat": lm_chat,
    }  # fmt: skip
    _check_options(task, {name for name, value in options.items() if value})
    if data is None and data_format != "auto":
        raise InputError("--format says how --data is written, and none is given")
    if answering is not None and answering.samples != 1 and task != "reward":
        raise InputError(f"--samples belongs to task reward; {task} looks at one answer to each prompt")
    common: dict[str, Any] = {"base": base, "limit": limit, "say": say}
    match task:
        case "loss" | "score":
            is_reward = opened(run)["kind"] == "reward"
            if is_reward != (task == "score"):
                fits = "a reward model: --task score" if is_reward else "no reward model: --task loss"
                raise InputError(f"task {task} does not fit {run}: it is {fits}")
            assert data is not None
            return measure_file(run, data, against=against, data_format=data_format, slices=slices, **common)
        case "reward":
            if not isinstance(judge, Path):
                raise InputError("--judge of task reward is a reward model's run; a language model judges win_rate")
            return mean_reward(
                run, judge, data=data, against=against, data_format=data_format, answering=answering, **common
            )
        case "win_rate":
            assert judge is not None and against is not None
            return win_rate(
                run, judge, against=against, data=data, data_format=data_format, answering=answering, tie=tie, **common
            )
        case "ifeval":
            assert data is not None
            return ifeval.follow_instructions(run, data, answering=answering, **common)
        case "gsm8k":
            assert data is not None
            return gsm8k.solve(run, data, shots=shots, examples=examples, answering=answering, **common)
        case "answers":
            return write_answers(run, prompts=data, limit=limit or 12, base=base, answering=answering, say=say)
    try:
        from finetune.evaluation.harness import measure_with_harness  # only now: it is an extra
    except ModuleNotFoundError as error:
        raise InputError(
            f"task lm_eval needs lm-evaluation-harness ({error}): pip install -c constraints.txt 'finetune[lm-eval]'"
        ) from error
    return measure_with_harness(run, lm_tasks, path=lm_path, shots=shots, in_chat=lm_chat, **common)


_WHAT = {
    "against": "base, or the run to compare with",
    "judge": "a reward model's run; for win_rate also the address of an OpenAI-compatible server, with --judge-model",
    "lm_tasks": "one of the harness' tasks",
}
"""Options that a task may need, in words."""


def usual_answering(task: str, **changes: Any) -> Answering:
    """How answers are drawn for a task unless the user says otherwise: greedy, with room for what it asks."""
    room = {"ifeval": ifeval.MAX_NEW_TOKENS, "gsm8k": gsm8k.MAX_NEW_TOKENS}
    usual = Answering(max_new_tokens=room.get(task, Answering().max_new_tokens))
    return replace(usual, **changes)


def _check_options(task: str, given: set[str]) -> None:
    for name in sorted(given - _READS[task]):
        readers = ", ".join(other for other, reads in _READS.items() if name in reads)
        raise InputError(f"{_option(name)} belongs to task {readers}; {task} does not read it")
    for name in _NEEDS.get(task, ()):
        if name not in given:
            what = _DATA[task] if name == "data" else _WHAT[name]
            raise InputError(f"task {task} needs {_option(name)}: {what}")


def _option(name: str) -> str:
    """As the command line calls it."""
    names = {"data_format": "--format", "slices": "--slice", "lm_tasks": "--lm-task"}
    if name == "answering":
        return "--temperature, --max-new-tokens and their like"
    return names.get(name, f"--{name.replace('_', '-')}")
