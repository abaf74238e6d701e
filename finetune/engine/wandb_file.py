"""What wandb has written to disk: the records of a .wandb file, in LevelDB's log format, each a protobuf message.

wandb's `finish` returns before its service has written the file's end, and a run folder must not be sealed before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7
"""Bytes of the file's header, and of each part's: checksum (4), length (2), kind (1)."""
_WHOLE, _FIRST, _LAST = 1, 2, 4
_PATIENCE = 30.0
"""Seconds; it takes milliseconds."""


def wait_for_end(path: Path) -> bool:
    """Wait until the file has the record of the run's end; False where it has none after half a minute."""
    until = time.monotonic() + _PATIENCE
    while not _has_end(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def read_records(content: bytes, *, from_start: bool = True) -> Iterator[Any]:
    """The records of a file's bytes, a torn last one left out. from_start: not so for bytes from a later block on."""
    from wandb.proto.wandb_internal_pb2 import Record

    at, parts = _HEADER if from_start else 0, b""
    begun = False  # a later block can begin in the middle of a record
    while at + _HEADER <= len(content):
        if (left := _BLOCK - at % _BLOCK) < _HEADER:
            at += left  # no room in the block for another part: filled up
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part, at = content[at + _HEADER : at + _HEADER + length], at + _HEADER + length
        if kind == 0 or len(part) < length:
            return
        if kind in (_WHOLE, _FIRST):
            parts, begun = b"", True
        parts += part
        if begun and kind in (_WHOLE, _LAST):
            yield Record.FromString(parts)


def _has_end(path: Path) -> bool:
    """Whether one of the last records, those of two blocks at most, says that the run has ended."""
    start = max(0, path.stat().st_size // _BLOCK - 1) * _BLOCK
    with path.open("rb") as file:
        file.seek(start)
        tail = file.read()
    return any(record.WhichOneof("record_type") == "exit" for record in read_records(tail, from_start=start == 0))
