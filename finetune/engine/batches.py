"""From tokenised rows to the batches of every optimiser step, as a pure function of (seed, step).

A step's rows are fixed by the recipe: row b of the epoch's order belongs to step b // batch_size, whatever the
micro-batch size. How a step is cut into forward passes is free, since the loss is a mean over the step's trained
tokens: so rows of like length go together (padded) or token counts are balanced (ragged).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.model.ragged import Layout, lay_out

Ints = Sequence[int] | NDArray[np.integer[Any]]


class Rows(Protocol):
    """Tokenised rows: `row(i)` is (ids, trained), two integer arrays of the row's length."""

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class TokenBatch:
    """B rows in a layout of T tokens, which may hold a prefix that rows share once.

    ids_T: [T] int64. predict_N, labels_N, row_N: [N] int64; for every trained token of every row: which of T predicts
    it (its predecessor), its id, and which row of the batch it belongs to. A row's first token has no predecessor and
    is not among them. last_B: [B] int64, which of T is each row's last token. rows: indices in the data.
    """

    ids_T: Tensor
    predict_N: Tensor
    labels_N: Tensor
    row_N: Tensor
    last_B: Tensor
    layout: Layout
    rows: tuple[int, ...]

    @property
    def units(self) -> int:
        """What the loss is a mean over: trained tokens."""
        return len(self.labels_N)

    @property
    def tokens(self) -> int:
        """Tokens of all rows, a shared prefix counted in each: what a padded forward would have to compute at least."""
        shared = sum(self.layout.before(segment) for segment in self.layout.segments)
        prefixes = {segment.prefix for segment in self.layout.segments if segment.prefix is not None}
        return len(self.ids_T) + shared - sum(self.layout.segments[prefix].length for prefix in prefixes)

    def to(self, device: torch.device) -> TokenBatch:
        if device.type == "cpu":
            return self
        names = ("ids_T", "predict_N", "labels_N", "row_N", "last_B")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def collate(data: Rows, rows: Sequence[int], groups: Sequence[Sequence[int]] | None = None) -> TokenBatch:
    """Lay the given rows out. groups: positions in `rows` that may share a prefix; None = no sharing."""
    taken = [data.row(int(index)) for index in rows]
    laid = lay_out([ids for ids, _ in taken], groups or [[i] for i in range(len(rows))])
    predict, labels, owners = [], [], []
    for owner, ((ids, trained), where) in enumerate(zip(taken, laid.where, strict=True)):
        positions = np.flatnonzero(np.asarray(trained)[1:]) + 1
        predict.append(where[positions - 1])
        labels.append(ids[positions].astype(np.int64))
        owners.append(np.full(len(positions), owner))
    return TokenBatch(
        torch.from_numpy(laid.ids),
        torch.from_numpy(np.concatenate(predict)),
        torch.from_numpy(np.concatenate(labels)),
        torch.from_numpy(np.concatenate(owners)),
        torch.tensor([int(where[-1]) for where in laid.where]),
        laid.layout,
        tuple(int(index) for index in rows),
    )


@dataclass(frozen=True)
class Schedule:
    """Which rows each step trains on. `order(epoch)` is that epoch's row indices, shuffled and weighted."""

    order: Callable[[int], np.ndarray]
    rows_per_epoch: int
    batch_size: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows_per_epoch / self.batch_size)

    def rows_of(self, step: int) -> np.ndarray:
        epoch, within = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[within * self.batch_size : (within + 1) * self.batch_size]


def total_steps(rows: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of a run: max_steps, or epochs passes where the last batch of an epoch may be smaller."""
    return max_steps if max_steps is not None else max(1, math.ceil(epochs * math.ceil(rows / batch_size) - 1e-9))


def micro_batches(rows: Ints, lengths: Ints, size: int, *, balance: bool) -> list[list[int]]:
    """Cut one step's rows into forward passes of at most `size` rows, as few as possible, the largest first.

    lengths: tokens of each of `rows`. balance False (padded): neighbours in length go together, so that little is
    padded. balance True (ragged): token counts are made even, so that the peak memory is lowest.
    """
    longest_first = sorted(range(len(rows)), key=lambda i: (-lengths[i], i))
    count = math.ceil(len(rows) / size)
    if not balance:
        groups = [longest_first[i * size : (i + 1) * size] for i in range(count)]
    else:
        groups = [[] for _ in range(count)]
        filled = [0] * count
        for i in longest_first:
            lightest = min((g for g in range(count) if len(groups[g]) < size), key=lambda g: (filled[g], g))
            groups[lightest].append(i)
            filled[lightest] += lengths[i]
        groups.sort(key=lambda group: -sum(lengths[i] for i in group))
    return [[int(rows[i]) for i in sorted(group)] for group in groups]
