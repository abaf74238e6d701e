"""What people preferred, kept as rows: comparisons for reward and dpo stages, and beside them what compares nothing.

A row is appended whole or not at all, whoever else appends to the same file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune.data.convert_prompts import message_fields
from finetune.durable import is_disk_full
from finetune.errors import DiskFullError, InputError
from finetune.shapes import Message

Verdict = Literal["left", "right", "tie", "both_bad"]
VERDICTS: tuple[Verdict, ...] = ("left", "right", "tie", "both_bad")
DEFAULT_FILE = Path("preferences.jsonl")


@dataclass(frozen=True)
class Given:
    """One of two answers, and the model that gave it."""

    model: str
    text: str


def ties_file(pairs: Path) -> Path:
    """Where ties and what was bad on both sides go: beside the pairs, as `preferences.ties.jsonl`."""
    return pairs.with_name(f"{pairs.stem}.ties{pairs.suffix or '.jsonl'}")


def keep_preference(
    pairs: Path, asked: Sequence[Message], left: Given, right: Given, verdict: Verdict, more: Mapping[str, Any]
) -> Path:
    """Append what was preferred. Returns the file that it went to. Raises InputError.

    asked: the conversation up to the two answers. more: further columns, such as how the answers were drawn.
    """
    if not asked or asked[-1].role != "user":
        raise InputError("a preference needs a question that ends the conversation: ask something first")
    if verdict in ("left", "right"):
        if not left.text.strip() or not right.text.strip():
            raise InputError("one of the answers is empty: reward and dpo stages read no such comparison")
        if "".join(left.text.split()) == "".join(right.text.split()):
            raise InputError("the two answers are the same but for white space: neither is better")
        chosen, rejected = (left, right) if verdict == "left" else (right, left)
        row = {
            "prompt": message_fields(asked),
            "chosen": message_fields([Message("assistant", chosen.text)]),
            "rejected": message_fields([Message("assistant", rejected.text)]),
            "chosen_model": chosen.model,
            "rejected_model": rejected.model,
        }
        append_row(pairs, {**row, **more})
        return pairs
    answers = [{"model": given.model, "text": given.text} for given in (left, right)]
    path = ties_file(pairs)
    append_row(path, {"prompt": message_fields(asked), "verdict": verdict, "answers": answers, **more})
    return path


def count_preferences(pairs: Path) -> dict[str, int]:
    """{pairs, tie, both_bad}: the rows that are there, whoever wrote them."""
    found = Counter(pairs=sum(1 for _ in _lines(pairs)), tie=0, both_bad=0)
    for line in _lines(ties_file(pairs)):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("verdict") in ("tie", "both_bad"):
            found[row["verdict"]] += 1
    return dict(found)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line of JSON, on the disk when this returns. Raises InputError and DiskFullError; then nothing is
    left of it."""
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; give another file") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # a hand-made file without its last newline
        try:
            written = 0
            while written < len(line):
                written += os.write(handle, line[written:])
            os.fsync(handle)
        except OSError as error:
            os.ftruncate(handle, size)
            if is_disk_full(error):
                raise DiskFullError(f"{path}: no space left on the disk, so the row was not kept") from error
            raise
    finally:
        os.close(handle)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
