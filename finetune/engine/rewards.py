"""What judges sampled answers: a reward model on the same base, two of them combined, or a checker.

(contract; being written)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel

from finetune.data.prepare_prompts import Prompt
from finetune.engine.job import Job
from finetune.model.base import Precision
from finetune.recipe.sampling_stages import ScoredStage


@dataclass(frozen=True)
class Answer:
    """A sampled answer to a prompt. ids: [n] int64, the stop token included. text: without special tokens."""

    prompt: Prompt
    ids: NDArray[np.int64]
    text: str
    finished: bool


Function = Callable[[Prompt, str], float]
"""A checker of the user's: (prompt, the answer's text) -> score."""


@dataclass(frozen=True)
class Scores:
    """total: [n] float64, what counts. parts: each judge's own scores by its name ("reward", "safety", the checker's
    kind), [n] float64, for the records."""

    total: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]


Judge = Callable[[Sequence[Answer]], Scores]


def open_judge(stage: ScoredStage, job: Job, model: PeftModel, precision: Precision) -> Judge:
    """The stage's judge. Reward models are attached, frozen, to the base that `model` is on, under names of their own;
    after every call the adapter that was active is active again, its weights as trainable as they were.

    Answers to one prompt that stand side by side share the prompt's forward. Raises InputError where a reward adapter
    does not fit, or a prompt lacks the column that the judge reads.
    """
    raise NotImplementedError
