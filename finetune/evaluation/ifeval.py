"""Task `ifeval`: does the run do what it is told, where a program can check it (Zhou et al. 2023, arXiv 2311.07911).

A file of prompts says with each what to check: `prompt`, `instruction_id_list`, and `kwargs`, one object for each
instruction (google/IFEval on the hub; any file of that form). instructions.py has the checks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.chat.model import Answering
from finetune.data.readers import Fault, RawRow, read_file
from finetune.errors import DataError
from finetune.evaluation.instructions import Arguments, follows, follows_loosely, problem
from finetune.evaluation.measurement import Measurement
from finetune.evaluation.reward import mean_tokens, sides_of, unfinished
from finetune.evaluation.writing import write_replies
from finetune.numerics.bootstrap import mean_interval
from finetune.plan.digest import data_files, source_digest
from finetune.plan.evaluations import Evaluation
from finetune.recipe.data_settings import DataSource
from finetune.reports.calibration import wilson
from finetune.shapes import Completion

Say = Callable[[str], None]

MAX_NEW_TOKENS = 1280
"""Some prompts ask for more than a thousand words; what is cut off seldom follows them."""


@dataclass(frozen=True)
class Told:
    """One prompt and its instructions with their arguments."""

    prompt: str
    instructions: tuple[tuple[str, Arguments], ...]


@dataclass(frozen=True)
class Followed:
    """Which of a prompt's instructions an answer follows, in their order."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def follow_instructions(
    run: Path,
    data: Path,
    *,
    base: str | None = None,
    limit: int | None = None,
    answering: Answering | None = None,
    say: Say,
) -> Evaluation:
    """Answer the prompts of `data`, check, keep. limit: the first so many. Raises InputError and its kinds."""
    told = read_told(data)[:limit]
    settings = answering or Answering(max_new_tokens=MAX_NEW_TOKENS)
    sides = sides_of(run, None)
    record = {
        "name": data.name,
        "digest": source_digest(DataSource(path=str(data)), Path),
        "rows": len(told),
    }
    measurement = Measurement(run, "ifeval", data=record, settings=asdict(settings), say=say)
    asked = [Completion(each.prompt, "") for each in told]
    replies = write_replies(sides.folders, sides.names, asked, settings, measurement, base=base, say=say)[
        sides.names[0]
    ]
    texts = [each[0].text for each in replies]
    found = [check(each, text) for each, text in zip(told, texts, strict=True)]
    results = {
        **ifeval_results(told, found),
        "mean_tokens": mean_tokens(replies),
        "unfinished": unfinished(replies),
    }
    rows = [
        {
            "prompt": each.prompt,
            "answer": text,
            "instructions": [name for name, _ in each.instructions],
            "strict": list(one.strict),
            "loose": list(one.loose),
        }
        for each, text, one in zip(told, texts, found, strict=True)
    ]
    return measurement.keep(results, rows)


def check(told: Told, answer: str) -> Followed:
    return Followed(
        tuple(follows(name, arguments, answer) for name, arguments in told.instructions),
        tuple(follows_loosely(name, arguments, answer) for name, arguments in told.instructions),
    )


def ifeval_results(told: Sequence[Told], found: Sequence[Followed]) -> dict[str, Any]:
    """prompt_*: share of prompts all of whose instructions are followed, with its Wilson interval; instruction_*: share
    of instructions, its interval by resampling prompts. by_kind: strict, by the instruction's name."""
    results: dict[str, Any] = {}
    for name in ("strict", "loose"):
        followed: list[tuple[bool, ...]] = [getattr(one, name) for one in found]
        whole = sum(map(all, followed))
        low, high = wilson(whole, len(found))
        results[f"prompt_{name}"] = {"value": whole / len(found), "low": low, "high": high}
        counts = [len(one) for one in followed]
        shares = [sum(one) / len(one) for one in followed]
        results[f"instruction_{name}"] = mean_interval(shares, weights=counts).record()
    kinds: dict[str, list[bool]] = defaultdict(list)
    for each, one in zip(told, found, strict=True):
        for (kind, _), right in zip(each.instructions, one.strict, strict=True):
            kinds[kind].append(right)
    results["instructions"] = sum(map(len, kinds.values()))
    results["by_kind"] = {
        kind: {"value": sum(right) / len(right), "instructions": len(right)} for kind, right in sorted(kinds.items())
    }
    return results


def read_told(path: Path) -> list[Told]:
    """All prompts of a file. Raises DataError with file and line for one whose instructions cannot be checked."""
    found = []
    for file in data_files(path):
        for row in read_file(file, file.name):
            if isinstance(row, Fault):
                raise DataError(row.reason, path=file, line=row.origin.line, row=row.origin.row, field=row.field)
            try:
                found.append(_told(row))
            except ValueError as error:
                raise DataError(str(error), path=file, line=row.origin.line, row=row.origin.row) from error
    if not found:
        raise DataError("has no rows", path=path)
    return found


def _told(row: RawRow) -> Told:
    prompt, names, arguments = (row.values.get(name) for name in ("prompt", "instruction_id_list", "kwargs"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("a row has a prompt, which is text, an instruction_id_list and kwargs (as google/IFEval)")
    if not isinstance(names, list) or not isinstance(arguments, list) or not names or len(names) != len(arguments):
        raise ValueError("instruction_id_list and kwargs are lists of the same length, one entry an instruction")
    instructions = []
    for name, given in zip(names, arguments, strict=True):
        # The hub's file writes every argument of every kind, null where it has none.
        own = {key: value for key, value in (given or {}).items() if value is not None}
        own = {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in own.items()}
        if why := problem(str(name), own):
            raise ValueError(why)
        instructions.append((str(name), own))
    return Told(prompt, tuple(instructions))
