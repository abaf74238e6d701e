"""Prompts for stages that sample: read, rendered up to where the answer begins, tokenised, split from held-out ones.

(contract; being written)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.tokenizer import Tokenizer
from finetune.families.base import Family
from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.recipe.settings import ModelSettings
from finetune.shapes import Example, Origin


@dataclass(frozen=True)
class Prompt:
    """One prompt. ids: [P] int64, up to where the answer begins. example: what was rendered, without the answer.

    key: below 2**64, from the prompt's content alone: what its random draws are seeded with. columns: the row's other
    columns, for checkers and safety marks (the row's own last answer is `answer` where no column has that name).
    """

    ids: NDArray[np.int64]
    example: Example
    key: int
    origin: Origin
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedPrompts:
    """train and held_out share no prompt. report: JSON for the manifest (sources with digests, counts, dropped)."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
    report: Mapping[str, Any]


def prepare_prompts(
    prompts: Sequence[DataSource],
    held_out: HeldOut | None,
    *,
    max_new_tokens: int,
    model: ModelSettings,
    seed: int,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    family: Family,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> PreparedPrompts:
    """All of a stage's prompts. Equal prompts count once (the first stays); those that with max_new_tokens more would
    exceed model.max_length are left out, counted and listed. Raises DataError and InputError (no prompt left)."""
    raise NotImplementedError
