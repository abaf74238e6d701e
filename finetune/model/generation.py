"""Answers by the model in memory: many at once, prompts computed once, finished rows leaving, the same for any batch.

(contract; being written)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. temperatures: sample j of a prompt takes entry j % len; 0 = greedy.

    stop_ids: tokens that end an answer. seed: with a prompt's key and the sample's number it fixes the draw.
    """

    temperatures: tuple[float, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """One answer. ids: [n] int64, the stop token included where the model wrote one. logps: [n] float32, each token's
    log-probability in nats at temperature 1, before top_k and top_p. finished: it ends with a stop token."""

    ids: NDArray[np.int64]
    logps: NDArray[np.float32]
    finished: bool
    temperature: float


def generate(
    model: LlamaForCausalLM,
    prompts: Sequence[NDArray[np.integer]],
    samples: int,
    sampling: Sampling,
    *,
    keys: Sequence[int],
    rows_at_once: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Generated]]:
    """`samples` answers to each prompt, in the order of `prompts`.

    model: the transformers model with its active adapters in place (`PeftModel.get_base_model()`), installed with
    `ragged.install`; put in eval mode here and left as it was. prompts: token ids, one row each. keys: one number below
    2**64 a prompt, which with the seed and the sample's number fixes its random draws, whatever stands beside it.
    rows_at_once: answers that are written side by side. progress: (answers done, tokens written) after each step.
    """
    raise NotImplementedError
