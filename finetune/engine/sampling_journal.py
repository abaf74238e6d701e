"""The journal of a stage that samples: what is done, whole chunks only, so that a killed stage goes on where it was.

One line of JSON a chunk, flushed to the disk before the next chunk begins. A kill in the middle of a write leaves a
line without its end, which is cut off when the journal is opened again. The first line says whose journal it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune.durable import sync_folder
from finetune.errors import CheckpointError

FILE = "journal.jsonl"


class Journal:
    """An open journal. done: chunks that are in it."""

    def __init__(self, path: Path, done: int) -> None:
        self.path, self.done = path, done

    def append(self, chunk: Mapping[str, Any]) -> None:
        """Write a chunk and flush it to the disk."""
        _append(self.path, chunk)
        self.done += 1

    def read(self) -> Iterator[dict[str, Any]]:
        """The chunks, in order, one at a time: a journal can be larger than memory."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def open_journal(work: Path, header: Mapping[str, Any]) -> Journal:
    """The journal in `work`, or a new one. header: JSON that fixes what its chunks are.

    Raises CheckpointError where a line is damaged, or the journal is another stage's.
    """
    path = work / FILE
    whole = _whole_lines(path)
    if whole == 0:
        work.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        _append(path, header)
        sync_folder(work)
        return Journal(path, 0)
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                value = json.loads(line)
            except ValueError as error:
                raise CheckpointError(
                    f"{path}:{number + 1} is damaged ({error}): remove the file to sample again from the beginning"
                ) from error
            if number == 0 and value != json.loads(json.dumps(header)):
                raise CheckpointError(f"{path} was written by other settings: remove it to sample from the beginning")
    return Journal(path, whole - 1)


def has_chunks(work: Path) -> bool:
    """Whether there is work to go on from."""
    path = work / FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n") and file.readline().endswith(b"\n")


def _append(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("ab") as file:
        file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> int:
    """Lines that have their end; what stands behind the last of them is cut off."""
    if not path.is_file():
        return 0
    lines, kept = 0, 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, kept = lines + 1, kept + len(line)
    os.truncate(path, kept)
    return lines
