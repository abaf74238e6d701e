"""What wandb has written to disk: the records of a .wandb file, in LevelDB's log format, each a protobuf message.

wandb's `finish` returns before its service has written the file's end, and a run folder must not be sealed before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7
"""Bytes of the file's header, and of each part's: checksum (4), length (2), kind (1)."""
_WHOLE, _FIRST, _LAST = 1, 2, 4
_END_BLOCKS, _ROW_BLOCKS = 2, 32
"""How much of a file's end is read for its last record, and for its last row: 64 KiB and 1 MiB."""
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


def rows_written(path: Path) -> int:
    """One more than the number (`_step`) of the last row of the history; 0 where there is none."""
    rows = 0
    for record in _last_records(path, _ROW_BLOCKS):
        for item in record.history.item:
            if item.nested_key == ["_step"] or item.key == "_step":
                rows = int(json.loads(item.value_json)) + 1
    return rows


def _has_end(path: Path) -> bool:
    return any(record.HasField("exit") for record in _last_records(path, _END_BLOCKS))


def _last_records(path: Path, blocks: int) -> Iterator[Any]:
    """The records that begin in the last blocks of a file."""
    start = max(0, path.stat().st_size // _BLOCK + 1 - blocks) * _BLOCK
    with path.open("rb") as file:
        file.seek(start)
        return read_records(file.read(), from_start=start == 0)
