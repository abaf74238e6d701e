"""Which rows, which side, and in which order: all drawn from the recipe's seed and from the rows' own content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Random numbers for one purpose, independent of all other purposes of the same seed."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def take_rows(rows: int, take: int | None, seed: int, what: str) -> Indices:
    """Indices, ascending, of `take` of `rows` rows drawn without repeats; all where take is None or more.

    what: identifies the rows by their content, so that the draw depends neither on where in the recipe a source stands
    nor on where its file lies.
    """
    if take is None or take >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.sort(generator(seed, "take", what).choice(rows, take, replace=False)).astype(np.int64)


def first_copies(keys: Sequence[bytes]) -> NDArray[np.bool_]:
    """True for the first row of every content, False for its later exact duplicates."""
    seen: set[bytes] = set()
    first = np.zeros(len(keys), dtype=np.bool_)
    for index, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            first[index] = True
    return first


def held_out_mask(keys: Sequence[bytes], fraction: float, max_rows: int, seed: int) -> NDArray[np.bool_]:
    """True for the rows that are held out: about `fraction` of them, at most `max_rows`, at least one.

    Every distinct content has a place on a line, by a hash of itself and the seed; contents are taken from the
    line's start while they fit, with all their copies. So the two sides share no row, the order of the rows does
    not matter, and rows that are added later move few others. At least one content stays on the training side.
    """
    mask = np.zeros(len(keys), dtype=np.bool_)
    copies: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        copies.setdefault(key, []).append(index)
    if fraction <= 0.0 or len(copies) < 2:
        return mask
    room = min(max_rows, max(1, round(fraction * len(keys))))
    salt = str(seed).encode()
    line = sorted(copies, key=lambda key: hashlib.sha256(salt + key).digest())
    for key in line[:-1]:
        if len(copies[key]) <= room:
            mask[copies[key]] = True
            room -= len(copies[key])
        if room == 0:
            break
    return mask


@dataclass(frozen=True)
class Mix:
    """Rows of several sources with weights. members[s]: the rows of source s, indices into the training rows."""

    members: tuple[Indices, ...]
    weights: tuple[float, ...]
    seed: int

    def counts(self) -> list[int]:
        """Rows that each source gives to an epoch, copies counted: the same in every epoch."""
        return [sum(self._whole_and_part(source)) for source in range(len(self.members))]

    def order(self, epoch: int) -> Indices:
        """Indices into the training rows for one epoch (from 0), shuffled.

        Weight w gives floor(w) copies of each row and round((w - floor(w)) n) rows more, without repeats. These
        walk round a seeded permutation from epoch to epoch, so that weight 0.5 has seen every row after two.
        """
        drawn = []
        for source, rows in enumerate(self.members):
            whole, part = self._whole_and_part(source)
            drawn.append(np.tile(rows, whole // max(1, len(rows))))
            if part:
                turn = generator(self.seed, "part", source).permutation(rows)
                drawn.append(turn[(epoch * part + np.arange(part)) % len(rows)])
        order = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
        generator(self.seed, "epoch", epoch).shuffle(order)
        return order.astype(np.int64)

    def _whole_and_part(self, source: int) -> tuple[int, int]:
        rows, weight = len(self.members[source]), self.weights[source]
        copies = int(weight)
        part = round((weight - copies) * rows)
        if rows and not copies and not part:
            part = 1  # a source that is in the mix is never silently left out of it
        return copies * rows, part
