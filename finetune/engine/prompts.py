"""What stages that sample do first: read their prompts, and see that base, judge and prompts fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.data.prepare_prompts import PreparedPrompts, Prompt, prepare_prompts
from finetune.engine.job import Job
from finetune.engine.rewards import check_columns
from finetune.engine.session import Words, check_words
from finetune.recipe.data_settings import HeldOut
from finetune.recipe.sampling_stages import ScoredStage

_PROOF_ROWS = 4


def open_prompts(stage: ScoredStage, held_out: HeldOut | None, job: Job, words: Words) -> PreparedPrompts:
    """The stage's prompts, rendered and split. Raises DataError and InputError."""
    return prepare_prompts(
        stage.prompts,
        held_out,
        max_new_tokens=stage.max_new_tokens,
        model=job.model,
        seed=job.seed,
        locate=job.locate,
        stage_outputs=job.inputs,
        family=words.resolved.family,
        tokenizer=words.tokenizer,
        say=job.say,
    )


def check_prompts(stage: ScoredStage, job: Job, prompts: Sequence[Prompt]) -> None:
    """All prompts that will be answered: their ids are the base's, and they have the columns that the judge reads.

    Says so where prompt and answer may go beyond the base's positions. Raises BaseModelError and InputError.
    """
    longest = max(len(prompt.ids) for prompt in prompts) + stage.max_new_tokens
    check_words(job, max(int(prompt.ids.max()) for prompt in prompts), longest)
    check_columns(stage, prompts)


def proof_prompts(prompts: Sequence[Prompt]) -> tuple[Tensor, list[int]]:
    """[T] ids and lengths of the first prompts, to prove an adapter on."""
    rows = [torch.from_numpy(prompt.ids) for prompt in prompts[:_PROOF_ROWS]]
    return torch.cat(rows), [len(row) for row in rows]
