"""Answers for a report: a run that has none yet is loaded and asked, and keeps what it answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune.errors import InputError
from finetune.plan.base_files import read_json
from finetune.reports.differences import answers_of_both
from finetune.reports.read import FinishedRun, read_run

_HAVE_ROWS = ("sft", "dpo", "ppo", "grpo", "rloo")
"""Kinds whose runs answer, and have rows of their own to be asked."""
_NEED_PROMPTS = ("average", "merged")
"""Kinds whose runs answer what they are given."""


@dataclass(frozen=True)
class Asking:
    """prompts: a file; None = the run's own held-out rows. base: where it is, None = where the run had it. say: shows
    the user a line."""

    prompts: Path | None
    base: str | None
    say: Callable[[str], None]

    def ask(self, folder: Path, prompts: Path | None = None) -> FinishedRun:
        """The run with its answers, beside those of what it came from; kept in its folder where that can be written.
        prompts: others than its own. Raises InputError."""
        from finetune.quiet import calm_libraries, quiet_libraries

        quiet_libraries()
        calm_libraries()
        from finetune.evaluation.answers import write_answers

        found = write_answers(
            folder,
            prompts=prompts or self.prompts,
            base=self.base,
            say=lambda line: self.say(f"  {line}"),
        )
        run = read_run(folder)
        kept = any(one.file_name == found.file_name for one in run.evaluations)
        return run if kept else replace(run, evaluations=(*run.evaluations, found))


def with_answers(folder: Path, asking: Asking | None) -> FinishedRun:
    """A run, with answers of its own where it can give any. asking None: those that are there. Why it could not be
    asked is a note of the run."""
    found = read_run(folder)
    if asking is None or (found.answered and asking.prompts is None) or not _can_answer(found, asking):
        return found
    asking.say(f"{found.name}: asking it, and what it came from")
    try:
        return asking.ask(folder)
    except InputError as error:
        return replace(found, notes=(*found.notes, f"it could not be asked: {error}"))


def both_with_answers(first: Path, second: Path, asking: Asking | None) -> tuple[FinishedRun, FinishedRun]:
    """Two runs, with answers to the same prompts where both can answer: those that the first one answered."""
    one, other = with_answers(first, asking), with_answers(second, asking)
    if asking is None or not (one.answered and other.answered) or answers_of_both(one, other, ("one", "other")):
        return one, other
    rows = next(evaluation.rows for evaluation in reversed(one.evaluations) if evaluation.task == "answers")
    asked = [asked_again(row) for row in rows]
    with TemporaryDirectory() as folder:
        prompts = Path(folder) / f"prompts of {one.stage}.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
        asking.say(f"{one.name} and {other.name}: asking both the same")
        return asking.ask(first, prompts), asking.ask(second, prompts)


def asked_again(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of an `answers` evaluation asked, as a row of a file of prompts."""
    asked = {"messages": row["messages"]} if row.get("messages") else {"prompt": row["prompt"]}
    return {**asked, **({"tools": row["tools"]} if row.get("tools") else {})}


def _can_answer(run: FinishedRun, asking: Asking) -> bool:
    if run.kind in _HAVE_ROWS:
        return True
    scores = (read_json(run.folder / "adapter_config.json") or {}).get("task_type") == "SEQ_CLS"
    return asking.prompts is not None and run.kind in _NEED_PROMPTS and not scores
