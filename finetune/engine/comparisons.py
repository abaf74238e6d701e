"""Batches of comparisons: the answers to each prompt laid out with the prompt once, and which answer beats which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.comparisons import Comparisons
from finetune.engine.batches import TokenBatch, collate
from finetune.numerics.bradley_terry import ranking_pairs
from finetune.numerics.preference import kto_mismatch


@dataclass(frozen=True)
class ComparisonBatch:
    """G groups (rankings, or judged answers) of B rows in one layout.

    answers: the rows' tokens; trained ones are those of the answers. better_P, worse_P: [P] int64, rows of the batch.
    share_P: [P] float32, 1 / pairs of the pair's group, so that every group weighs the same. margin_P: [P] float32.
    content_N: [N] bool, labels that are no format tokens. best_B: [B] bool, the best answer of each ranking.
    desirable_B: [B] bool. groups: indices in the data. step_share: what makes a sum over this batch's best tokens a
    mean over the step's, times the step's groups. side_shares: the same for a sum over the batch's desirable, and over
    its undesirable answers. mismatched: each prompt with another prompt's answer (kto).
    """

    answers: TokenBatch
    better_P: Tensor
    worse_P: Tensor
    share_P: Tensor
    margin_P: Tensor
    content_N: Tensor
    best_B: Tensor
    desirable_B: Tensor
    groups: tuple[int, ...]
    step_share: float = 0.0
    side_shares: tuple[float, float] = (0.0, 0.0)
    mismatched: TokenBatch | None = None

    @property
    def units(self) -> int:
        """What the loss is a mean over: groups."""
        return len(self.groups)

    @property
    def tokens(self) -> int:
        return self.answers.tokens

    @property
    def rows(self) -> tuple[int, ...]:
        return self.groups

    @property
    def counts(self) -> list[int]:
        """Labels of each row."""
        return torch.bincount(self.answers.row_N, minlength=len(self.best_B)).tolist()

    def to(self, device: torch.device) -> ComparisonBatch:
        if device.type == "cpu":
            return self
        names = ("better_P", "worse_P", "share_P", "margin_P", "content_N", "best_B", "desirable_B")
        moved = {name: getattr(self, name).to(device) for name in names}
        other = None if self.mismatched is None else self.mismatched.to(device)
        return replace(self, answers=self.answers.to(device), mismatched=other, **moved)

    def row_sums(self, values_N: Tensor, keep_N: Tensor | None = None) -> Tensor:
        """[B] sums of a value over each row's labels; keep_N: only where True."""
        kept_N = values_N if keep_N is None else values_N * keep_N
        return torch.stack([part.sum() for part in kept_N.split(self.counts)])


def collate_groups(
    data: Comparisons,
    groups: Sequence[int],
    *,
    ranked: Literal["all", "top"],
    margins: NDArray[np.float64] | None = None,
    share: bool = True,
) -> ComparisonBatch:
    """Lay out the answers of the given groups. margins: [groups of the data]; None = 0. share: prompts once."""
    rows: list[int] = []
    members: list[range] = []
    better, worse, shares, margin, best = [], [], [], [], []
    for group in groups:
        own = data.group(int(group))
        places = range(len(rows), len(rows) + len(own))
        members.append(places)
        rows += own
        best += [place == places[0] for place in places]
        pairs = ranking_pairs(len(own), ranked) if len(own) > 1 else []
        better += [places[high] for high, _ in pairs]
        worse += [places[low] for _, low in pairs]
        shares += [1 / len(pairs) for _ in pairs]
        margin += [0.0 if margins is None else float(margins[group])] * len(pairs)
    answers = collate(data.rows, rows, members if share else None)
    content = [data.row_format(row)[1:][data.rows.row(row)[1][1:].astype(bool)] == 0 for row in rows]
    return ComparisonBatch(
        answers=answers,
        better_P=torch.tensor(better, dtype=torch.int64),
        worse_P=torch.tensor(worse, dtype=torch.int64),
        share_P=torch.tensor(shares, dtype=torch.float32),
        margin_P=torch.tensor(margin, dtype=torch.float32),
        content_N=torch.from_numpy(np.concatenate(content)),
        best_B=torch.tensor(best),
        desirable_B=torch.from_numpy(np.repeat(data.desirable[list(groups)] == 1, data.sizes[list(groups)])),
        groups=tuple(int(group) for group in groups),
    )


def with_step_shares(batches: Sequence[ComparisonBatch]) -> list[ComparisonBatch]:
    """Let each batch know its part in means over the step: over all best answers' tokens, over each side's answers."""
    tokens = sum(int(batch.best_B[batch.answers.row_N].sum()) for batch in batches)
    units = sum(batch.units for batch in batches)
    desirable = sum(int(batch.desirable_B.sum()) for batch in batches)
    sides = (units / max(desirable, 1), units / max(units - desirable, 1))
    return [replace(batch, step_share=units / max(tokens, 1), side_shares=sides) for batch in batches]


def with_mismatched(batch: ComparisonBatch, data: Comparisons) -> ComparisonBatch:
    """Add each prompt with the answer of another (`kto_mismatch`), for KTO's baseline; nothing for a batch of one."""
    rows = batch.answers.rows
    if len(rows) < 2:
        return batch
    parts = []
    for row, other in zip(rows, (rows[index] for index in kto_mismatch(len(rows))), strict=True):
        prompt, _ = data.rows.row(row)
        answer, trained = data.rows.row(other)
        own, begins = int(data.prompt_lengths[row]), int(data.prompt_lengths[other])
        mask = np.concatenate([np.zeros(own, np.uint8), trained[begins:]])
        parts.append((np.concatenate([prompt[:own], answer[begins:]]), mask))
    return replace(batch, mismatched=collate(_Listed(parts), range(len(parts))))


@dataclass(frozen=True)
class _Listed:
    """Rows made on the spot."""

    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(ids) for ids, _ in self.parts])

    def __len__(self) -> int:
        return len(self.parts)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        return self.parts[index]
