"""From a stage's data sources to the comparisons it trains on and those it is measured on, with a report of every row.

Read → take → tokenise → leave out (duplicates, answers alike, too long) → hold out by prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.comparisons import Comparisons
from finetune.data.mix import Mix
from finetune.data.report import DataReport
from finetune.data.tokenizer import Tokenizer
from finetune.families.base import Family
from finetune.recipe.schema import ModelSettings, PreferenceStage
from finetune.shapes import Origin

__all__ = ["Comparisons", "PreparedComparisons", "prepare_comparisons"]


@dataclass(frozen=True)
class PreparedComparisons:
    """train, held_out (None = no such comparisons): what is trained and measured on.

    comparisons: all that were taken, whole, in the order of the files. dropped: the reason for each that is left out,
    None = used. origins: where a comparison stands, by the number that `origin_of` of Comparisons gives.
    """

    train: Comparisons
    held_out: Comparisons | None
    report: DataReport
    comparisons: Comparisons
    dropped: Sequence[str | None]
    origins: Sequence[Origin]
    mix: Mix

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of groups of `train` for one epoch (from 0): shuffled by the seed, with weights applied."""
        return self.mix.order(epoch)

    def origin_of(self, train_group: int) -> Origin:
        return self.origins[self.train.origin_of(train_group)]


def prepare_comparisons(
    stage: PreferenceStage,
    *,
    slices: Sequence[str],
    judged: bool,
    model: ModelSettings,
    seed: int,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    family: Family,
    tokenizer: Tokenizer,
    cache: Path | None,
    say: Callable[[str], None],
    refuse: bool = True,
) -> PreparedComparisons:
    """All of a stage's comparisons, ready to train on.

    slices: columns to keep as `extra`. judged: the stage learns from single judged answers (kto), not from rankings.
    locate, stage_outputs, cache, say, refuse: as for prepare_sft. Raises DataError and InputError.
    """
    raise NotImplementedError
