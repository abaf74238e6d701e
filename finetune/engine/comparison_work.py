"""The loop's work for stages that learn from comparisons: which groups each step trains on, as batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.comparisons import Comparisons
from finetune.data.prepare_preference import PreparedComparisons
from finetune.engine import loop
from finetune.engine.batches import Schedule, micro_batches, total_steps
from finetune.engine.comparisons import ComparisonBatch, collate_groups, with_mismatched, with_step_shares
from finetune.recipe.learning_stages import PreferenceStage

PROOF_ROWS, PROOF_TOKENS = 4, 256
"""What is written is loaded again and compared on this many answers, each cut to this many tokens."""

Margins = Callable[[Comparisons], NDArray[np.float64] | None]


def comparison_work(
    data: PreparedComparisons,
    stage: PreferenceStage,
    objective: loop.Objective[ComparisonBatch],
    *,
    margins: Margins = lambda data: None,
    judged: bool = False,
) -> loop.Work[ComparisonBatch]:
    """Batches of groups by the recipe's batch and micro-batch sizes.

    margins: the margin of every group of some data. judged: single answers for KTO, whose baseline is estimated within
    a micro-batch: these are of equal size then, in the step's order.
    """
    train = stage.train
    rows_per_epoch = len(data.epoch_order(0))
    steps = total_steps(rows_per_epoch, train.batch_size, train.epochs, train.max_steps)
    schedule = Schedule(data.epoch_order, rows_per_epoch, train.batch_size, steps)
    ragged = train.layout == "ragged"
    margins_of = {id(source): margins(source) for source in (data.train, data.held_out) if source is not None}

    def batches(source: Comparisons, chosen: NDArray[np.int64]) -> list[ComparisonBatch]:
        if judged:
            parts = [part.tolist() for part in np.array_split(chosen, -(-len(chosen) // train.micro_batch_size))]
        else:
            parts = micro_batches(chosen, source.lengths[chosen], train.micro_batch_size, balance=ragged)
        own = margins_of[id(source)]
        made = [collate_groups(source, part, ranked=stage.ranked, margins=own, share=ragged) for part in parts]
        return with_step_shares([with_mismatched(batch, source) for batch in made] if judged else made)

    def name_rows(groups: Sequence[int]) -> str:
        names = [str(data.origin_of(int(group))) for group in groups[:8]]
        return ", ".join(names) + (f" and {len(groups) - 8} more" if len(groups) > 8 else "")

    held_out: list[ComparisonBatch] = []
    if data.held_out is not None and len(data.held_out):
        held_out = batches(data.held_out, np.arange(len(data.held_out)))
    return loop.Work(
        objective=objective,
        step_batches=lambda step: batches(data.train, np.asarray(schedule.rows_of(step))),
        total_steps=steps,
        steps_per_epoch=schedule.steps_per_epoch,
        held_out=held_out,
        name_rows=name_rows,
        unit="judged answers" if judged else "comparisons",
    )


def proof_rows(data: PreparedComparisons) -> tuple[Tensor, list[int]]:
    """[T] ids and lengths of the first answers, held-out ones where there are any."""
    rows = (data.held_out if data.held_out is not None and len(data.held_out) else data.train).rows
    parts = [torch.tensor(rows.row(i)[0][:PROOF_TOKENS].astype("int64")) for i in range(min(PROOF_ROWS, len(rows)))]
    return torch.cat(parts), [len(part) for part in parts]
