"""Safetensors one tensor at a time: what is read or written of a checkpoint is never more than one tensor.

The library maps whole files into memory and writes only dictionaries that are in memory; a 70B model is merged here in
the memory of its largest tensor. The format (github.com/huggingface/safetensors): 8 bytes little-endian with the length
of a JSON header, the header with dtype, shape and offsets of each tensor, then the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.durable import write_json
from finetune.errors import BaseModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_ALIGN = 8


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes [start, end) of a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """The tensor, in memory of its own."""
        buffer = bytearray(self.end - self.start)
        with self.file.open("rb") as file:
            file.seek(self.start)
            if file.readinto(buffer) != len(buffer):
                raise BaseModelError(f"{self.file} ends before its tensors do: the file is cut")
        if not buffer:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(buffer, dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_places(path: Path) -> dict[str, Place]:
    """Every tensor of one safetensors file. Raises BaseModelError for a file that is none, or is cut."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise BaseModelError(f"{path} is no safetensors file: its header would have {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        size = path.stat().st_size
        places = {
            name: Place(
                path,
                DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BaseModelError(f"{path} is no safetensors file that can be read: {error}") from error
    for name, place in places.items():
        if place.end > size or place.end - place.start != Entry(name, place.dtype, place.shape).size:
            raise BaseModelError(f"{path} is cut or damaged: {name} does not lie in it whole")
    return places


def checkpoint_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, in order, as transformers chooses them. Raises BaseModelError."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        raise BaseModelError(f"{folder} has neither {SINGLE} nor {INDEX}: no checkpoint in safetensors")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BaseModelError(f"{index} cannot be read: {error}") from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BaseModelError(f"{folder} lacks {missing[0]}, which its index names: the checkpoint is not complete")
    return [folder / name for name in names]


def write_file(path: Path, entries: Sequence[Entry], tensor_of: Callable[[Entry], Tensor]) -> None:
    """Write one safetensors file, asking for each tensor when its turn comes; flushed to the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.size],
        }
        at += entry.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = tensor_of(entry)
            if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
                raise AssertionError(f"{entry.name}: announced {entry}, got {tensor.dtype} {tuple(tensor.shape)}")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor
        file.flush()
        os.fsync(file.fileno())


def write_index(folder: Path, files: Mapping[str, Sequence[Entry]]) -> None:
    """Write the index of a checkpoint of several files. files: {file name: what it holds}."""
    content = {
        "metadata": {"total_size": sum(entry.size for entries in files.values() for entry in entries)},
        "weight_map": {entry.name: name for name, entries in sorted(files.items()) for entry in entries},
    }
    write_json(folder / INDEX, content)
