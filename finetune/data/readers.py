"""Files to rows: JSON, JSONL, CSV, Parquet and plain text. What is wrong with one row is handed on, not raised, so
that a user sees the first few bad rows at once; what is wrong with the whole file is a DataError.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.fields import kind_of
from finetune.errors import DataError
from finetune.shapes import Origin

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it."""

    values: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used. field: the file's own name of the field, None where the row as a whole is wrong."""

    origin: Origin
    reason: str
    field: str | None = None


def read_file(path: Path, shown: str) -> Iterator[RawRow | Fault]:
    """Rows of one file in order. shown: what the file is called in origins. Raises DataError."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise DataError("the file is empty", path=path)
        match path.suffix.lower():
            case ".jsonl":
                yield from _jsonl(path, shown)
            case ".json":
                yield from _json(path, shown)
            case ".csv":
                yield from _csv(path, shown)
            case ".parquet":
                yield from _parquet(path, shown)
            case ".txt":
                yield from _text(path, shown)
            case other:
                raise DataError(f"files of type '{other}' are not read", path=path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path) from error


def row_of(value: object, origin: Origin) -> RawRow | Fault:
    """A row must be an object with named fields."""
    if isinstance(value, dict):
        return RawRow(value, origin)
    return Fault(origin, f"a row should be an object with named fields, this is {kind_of(value)}")


def _jsonl(path: Path, shown: str) -> Iterator[RawRow | Fault]:
    with path.open("rb") as file:
        # Lines end at \n only: U+2028 and the like may stand inside a JSON text.
        for number, line in enumerate(file, start=1):
            if number == 1:
                _refuse_utf16(line, path)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            origin = Origin(shown, line=number)
            try:
                value = json.loads(line.decode("utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                yield Fault(origin, f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1}")
            except json.JSONDecodeError as error:
                yield Fault(origin, f"not valid JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield Fault(origin, "JSON nested too deeply")
            else:
                fault = row_of(value, origin)
                if number == 1 and isinstance(fault, Fault) and isinstance(value, list):
                    raise DataError("holds a JSON array, not one object a line; name it .json", path=path, line=1)
                yield fault


def _json(path: Path, shown: str) -> Iterator[RawRow | Fault]:
    content = _decoded(path)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and content.lstrip().startswith("{") and _first_line_is_object(content):
            yield from _jsonl(path, shown)  # JSON lines under the name .json: common, and unmistakable
            return
        raise DataError(f"not valid JSON: {error.msg} at column {error.colno}", path=path, line=error.lineno) from error
    except RecursionError as error:
        raise DataError("JSON nested too deeply", path=path) from error
    if isinstance(value, dict):
        if "data" not in value:
            keys = ", ".join(list(value)[:8])
            raise DataError(
                f"holds one object (with {keys or 'nothing in it'}); expected an array of rows, or an object with "
                "such an array under 'data'",
                path=path,
            )
        value = value["data"]
    if not isinstance(value, list):
        raise DataError(f"expected an array of rows, found {kind_of(value)}", path=path)
    for index, row in enumerate(value):
        yield row_of(row, Origin(shown, row=index))


def _first_line_is_object(content: str) -> bool:
    try:
        return isinstance(json.loads(content.lstrip().split("\n", 1)[0]), dict)
    except json.JSONDecodeError:
        return False


def _csv(path: Path, shown: str) -> Iterator[RawRow | Fault]:
    # The library's limit of 131,072 characters a cell is shorter than a long conversation. It is global to the process.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        if not any(name.strip() for name in header):
            raise DataError("the first line should name the columns", path=path, line=1)
        if len(set(header)) < len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise DataError(f"two columns are named '{twice}'", path=path, line=1)
        line = reader.line_num + 1
        for cells in reader:
            origin, line = Origin(shown, line=line), reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                yield Fault(origin, f"has {len(cells)} cells, the first line names {len(header)} columns")
            else:
                yield RawRow(dict(zip(header, cells, strict=True)), origin)
    except csv.Error as error:
        raise DataError(f"not valid CSV in the row that begins here: {error}", path=path, line=line) from error


def _parquet(path: Path, shown: str) -> Iterator[RawRow | Fault]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield RawRow(row, Origin(shown, row=index))
                    index += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"not a Parquet file that can be read: {error}", path=path) from error


def _text(path: Path, shown: str) -> Iterator[RawRow | Fault]:
    """A text file is one document; its last line break is not part of it."""
    yield RawRow({"text": _decoded(path).rstrip("\r\n")}, Origin(shown))


def _decoded(path: Path) -> str:
    """The whole file as text. A UTF-8 byte order mark is dropped; any other encoding is a DataError with the line."""
    content = path.read_bytes()
    _refuse_utf16(content, path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8", path=path, line=line
        ) from error


def _refuse_utf16(content: bytes, path: Path) -> None:
    if content.startswith(_UTF16_MARKS):
        raise DataError("is UTF-16; save the file as UTF-8", path=path, line=1)
