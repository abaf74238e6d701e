"""Answers of an `answers` evaluation for the terminal: each prompt, then what each of the runs said."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

from finetune.plan.evaluations import Evaluation
from finetune.reports.words import counted

SHOWN = 12
"""Prompts whose answers are printed; the others are in the evaluation and in --out."""
_WIDEST = 100
"""Columns that are read easily, also where the terminal has more."""
_INDENT = " " * 5
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a model may write and a terminal would obey, or could not print."""


def answer_lines(evaluation: Evaluation, columns: int | None = None) -> list[str]:
    """Lines of the first SHOWN prompts. columns: of the terminal, None = as many as it has."""
    width = min(_WIDEST, columns or shutil.get_terminal_size().columns)
    names = [str(name) for name in evaluation.results.get("names") or ()]
    lines: list[str] = []
    for at, row in enumerate(evaluation.rows[:SHOWN], start=1):
        lines += ["", f"{at}. prompt", *_indented(str(row.get("prompt") or ""), width)]
        if turns := len(row.get("messages") or ()) - 1:
            lines += [f"   (after {counted(turns, 'turn')} before it)"] if turns > 0 else []
        for name in ("expected", *names) if "expected" not in names else names:
            if isinstance(row.get(name), str):
                lines += [f"   {name}", *_indented(row[name], width)]
    if (left := len(evaluation.rows) - SHOWN) > 0:
        lines += ["", f"{left:,} more in the evaluation: --out writes all"]
    return [*lines, ""] if lines else []


def _indented(content: str, width: int) -> Iterator[str]:
    """A text wrapped to the width, its own lines kept; letters as wide as two count as two."""
    from rich.console import Console
    from rich.text import Text

    room = max(20, width - len(_INDENT))
    console = Console(width=room)
    shown = _CONTROL.sub("\ufffd", content.replace("\r\n", "\n").expandtabs(4)).strip("\n")
    for line in shown.split("\n") if shown.strip() else ["(nothing)"]:
        for part in Text(line).wrap(console, room):
            yield f"{_INDENT}{part.plain}".rstrip()
