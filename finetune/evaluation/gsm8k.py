"""Task `gsm8k`: grade-school mathematics, right where the answer ends with the right number (Cobbe et al. 2021).

Rows have `question` and `answer`, whose last line is "#### 18". The run is asked zero-shot, with a line that says how
to end, or after some solved examples. It measures post-training as much as mathematics: an answer that reasons
well and does not end with its number is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from finetune.chat.model import Answering
from finetune.data.readers import Fault, read_file
from finetune.errors import DataError, InputError
from finetune.evaluation.measurement import Measurement, opened
from finetune.evaluation.reward import mean_tokens, sides_of, unfinished
from finetune.evaluation.writing import write_replies
from finetune.families.detect import FAMILIES
from finetune.plan.digest import data_files, source_digest
from finetune.plan.evaluations import Evaluation
from finetune.recipe.data_settings import DataSource
from finetune.reports.calibration import wilson
from finetune.shapes import Completion, Dialog, Message

Say = Callable[[str], None]

MAX_NEW_TOKENS = 512
INSTRUCTION = "\n\nThink step by step. End with a line that says only #### and the final number."
_MARK = "####"
_NUMBER = re.compile(r"(?:(?<![\w)])[-\u2212])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
"""A minus belongs to a number unless something stands before it that it is taken from."""
_CALCULATION = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True)
class Problem:
    """One row. solution: the data's own, without its calculator's marks. number: what is right."""

    question: str
    solution: str
    number: Decimal


def solve(
    run: Path,
    data: Path,
    *,
    shots: int = 0,
    examples: Path | None = None,
    base: str | None = None,
    limit: int | None = None,
    answering: Answering | None = None,
    say: Say,
) -> Evaluation:
    """Ask the problems of `data`, compare, keep. shots: so many solved problems from the beginning of `examples` (the
    train split) stand before each. limit: the first so many problems. Raises InputError and its kinds."""
    problems = read_problems(data)[:limit]
    solved = _solved(shots, examples)
    if {problem.question for problem in problems} & {problem.question for problem in solved}:
        raise InputError(f"--examples: {examples} has a problem that is asked: solved examples come from other rows")
    settings = answering or Answering(max_new_tokens=MAX_NEW_TOKENS)
    sides = sides_of(run, None)
    record = {"name": data.name, "digest": source_digest(DataSource(path=str(data)), Path), "rows": len(problems)}
    asked = [prompt_of(problem, solved, _is_chat(run)) for problem in problems]
    shown = {"shots": shots, "instruction": INSTRUCTION.strip()}
    if examples is not None:
        shown["examples"] = source_digest(DataSource(path=str(examples)), Path)
    measurement = Measurement(run, "gsm8k", data=record, settings={**asdict(settings), **shown}, say=say)
    name = sides.names[0]
    replies = write_replies(sides.folders, sides.names, asked, settings, measurement, base=base, say=say)[name]
    rows: list[dict[str, Any]] = []
    for problem, each in zip(problems, replies, strict=True):
        said = final_number(each[0].text)
        rows.append(
            {
                "prompt": problem.question,
                "answer": each[0].text,
                "said": None if said is None else f"{said:f}",
                "wanted": f"{problem.number:f}",
                "right": said == problem.number,
            }
        )
    right = sum(row["right"] for row in rows)
    low, high = wilson(right, len(rows))
    results = {
        "accuracy": {"value": right / len(rows), "low": low, "high": high},
        "right": right,
        "problems": len(rows),
        "without_number": sum(row["said"] is None for row in rows),
        "with_mark": sum(_MARK in row["answer"] for row in rows) / len(rows),
        "mean_tokens": mean_tokens(replies),
        "unfinished": unfinished(replies),
    }
    return measurement.keep(results, rows)


def final_number(text: str) -> Decimal | None:
    """The first number behind the last ####, else the last number of the text; None where there is none.

    Commas between thousands, a dollar and a stop at its end do not count: $1,050.00 is 1050.
    """
    behind = text.rpartition(_MARK)[2] if _MARK in text else ""
    marked, found = _NUMBER.findall(behind), _NUMBER.findall(text)
    if not found:
        return None
    word = marked[0] if marked else found[-1]
    return Decimal(word.replace(",", "").replace("$", "").replace("\u2212", "-"))


def prompt_of(problem: Problem, solved: Sequence[Problem], is_chat: bool) -> Dialog | Completion:
    """What the run is asked: turns where it knows turns, else text. Solved examples end as the answer should."""
    if is_chat:
        messages = []
        for example in solved:
            messages += [Message("user", example.question + INSTRUCTION), Message("assistant", example.solution)]
        return Dialog((*messages, Message("user", problem.question + INSTRUCTION)))
    before = "".join(f"Question: {each.question}\nAnswer: {each.solution}\n\n" for each in solved)
    told = "" if solved else INSTRUCTION
    return Completion(f"{before}Question: {problem.question}{told}\nAnswer:", "")


def read_problems(path: Path) -> list[Problem]:
    """All rows of a file. Raises DataError with file and line."""
    found = []
    for file in data_files(path):
        for row in read_file(file, file.name):
            place: dict[str, Any] = {"path": file, "line": row.origin.line, "row": row.origin.row}
            if isinstance(row, Fault):
                raise DataError(row.reason, field=row.field, **place)
            question, answer = row.values.get("question"), row.values.get("answer")
            if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
                raise DataError("a row has a question and an answer, which are text (as openai/gsm8k)", **place)
            number = final_number(answer) if _MARK in answer else None
            if number is None:
                raise DataError(f"its answer does not end with {_MARK} and a number", field="answer", **place)
            found.append(Problem(question, _CALCULATION.sub("", answer), number))
    if not found:
        raise DataError("has no rows", path=path)
    return found


def _solved(shots: int, examples: Path | None) -> list[Problem]:
    if shots == 0:
        if examples is not None:
            raise InputError("--examples are solved problems to show: --shots says how many of them")
        return []
    if examples is None:
        raise InputError("--shots needs --examples: a file of solved problems, the train split")
    solved = read_problems(examples)
    if len(solved) < shots:
        raise InputError(f"--examples: {examples} has {len(solved):,} problems, --shots asks for {shots:,}")
    return solved[:shots]


def _is_chat(run: Path) -> bool:
    """Whether the run's template has turns."""
    return FAMILIES[opened(run)["family"]["template"]].is_chat
