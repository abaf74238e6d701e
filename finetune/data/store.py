"""Tokenised rows: a few flat arrays on disk, found again by a hash of everything that went into them.

Legend: N rows, T tokens of all stored rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VERSION = 1
"""Raised when the layout of the files changes."""
_ARRAYS = ("ids", "trained", "lengths")


@dataclass(frozen=True)
class TokenRows:
    """N rows over shared token arrays; choosing and cutting rows copies no tokens.

    ids: int32 [T]. trained: uint8 [T], 0 or 1. starts, lengths: int64 [N], row i is ids[starts[i]:][:lengths[i]].
    trained_counts: int64 [N], tokens a row that are learnt: trained, its first left out, which nothing predicts.
    origin: int64 [N], the row's number in the order of the files.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    trained_counts: NDArray[np.int64]
    origin: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """(ids, trained) of one row, as views."""
        span = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return self.ids[span], self.trained[span]

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_], origin: NDArray[np.int64] | None = None) -> TokenRows:
        """Some rows (indices or a mask), in that order, with new origins if given."""
        return TokenRows(
            self.ids,
            self.trained,
            self.starts[rows],
            self.lengths[rows],
            self.trained_counts[rows],
            self.origin[rows] if origin is None else origin,
        )

    def cut(self, max_length: int) -> TokenRows:
        """Rows of at most `max_length` tokens, cut at the end; what is cut ends with a trained token or has none."""
        lengths = self.lengths.copy()
        counts = self.trained_counts.copy()
        for row in np.flatnonzero(lengths > max_length):
            kept = self.trained[self.starts[row] : self.starts[row] + max_length]
            trained = np.flatnonzero(kept)
            # Behind the last trained token stands the beginning of a prompt that nobody answers any more.
            lengths[row] = trained[-1] + 1 if len(trained) else max_length
            counts[row] = np.count_nonzero(kept[1:])
        return TokenRows(self.ids, self.trained, self.starts, lengths, counts, self.origin)


def cache_key(parts: Iterable[str | bytes]) -> str:
    """sha256 over parts, each with its length: no two lists of parts run together to the same key."""
    digest = hashlib.sha256(str(_VERSION).encode())
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()


def pack(rows: Iterable[tuple[Sequence[int], Sequence[int]]]) -> TokenRows:
    """Rows of (ids, trained) laid end to end."""
    ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
    trained: list[NDArray[np.uint8]] = [np.zeros(0, dtype=np.uint8)]
    lengths: list[int] = []
    for row_ids, row_trained in rows:
        ids.append(np.asarray(row_ids, dtype=np.int32))
        trained.append(np.asarray(row_trained, dtype=np.uint8))
        lengths.append(len(row_ids))
    return _rows(np.concatenate(ids), np.concatenate(trained), np.asarray(lengths, dtype=np.int64))


def load_or_make(folder: Path | None, key: str, make: Callable[[], TokenRows], say: Callable[[str], None]) -> TokenRows:
    """The rows stored under `key`, or made and stored there. A broken entry is not used and made anew.

    folder: of all entries; None = nothing is stored. A cache that cannot be written is said, not an error.
    """
    if folder is None:
        return make()
    entry = folder / f"tokens-{key[:32]}"
    stored = _load(entry, key)
    if stored is not None:
        say(f"tokens: {len(stored):,} distinct rows found in the cache")
        return stored
    rows = make()
    try:
        _save(entry, key, rows)
    except OSError as error:
        say(f"tokens: not cached, {entry} cannot be written ({error.strerror or error}); going on without")
        return rows
    return _load(entry, key) or rows


def _rows(ids: NDArray[np.int32], trained: NDArray[np.uint8], lengths: NDArray[np.int64]) -> TokenRows:
    ends = np.cumsum(lengths)
    # Trained tokens up to each end, then differences: one pass over the tokens however many rows there are.
    so_far = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
    starts = ends - lengths
    counts = so_far[ends] - so_far[np.minimum(starts + 1, ends)]
    return TokenRows(ids, trained, starts, lengths, counts, np.arange(len(lengths), dtype=np.int64))


def _save(entry: Path, key: str, rows: TokenRows) -> None:
    """Write beside the final name, then rename: an entry that has its name is complete."""
    part = entry.with_name(f"{entry.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        files: dict[str, Any] = {}
        for name in _ARRAYS:
            with (part / f"{name}.npy").open("wb") as file:
                np.save(file, getattr(rows, name))
            files[name] = _sha256(part / f"{name}.npy")
        (part / "meta.json").write_text(json.dumps({"key": key, "files": files}), encoding="utf-8")
        shutil.rmtree(entry, ignore_errors=True)
        # Fails where another process was faster; its entry holds the same rows.
        os.replace(part, entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _load(entry: Path, key: str) -> TokenRows | None:
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        if meta["key"] != key or any(_sha256(entry / f"{n}.npy") != meta["files"][n] for n in _ARRAYS):
            return None
        ids, trained, lengths = (np.load(entry / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not len(ids) == len(trained) == lengths.sum():
        return None
    return _rows(ids, trained, np.array(lengths))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
