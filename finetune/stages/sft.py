"""Supervised fine-tuning: maximise the log-probability of the answers.

Loss: the negative log-probability of every trained token, averaged over all trained tokens of an optimiser step (not
over rows, and not per micro-batch: each trained token counts the same, however the step is cut). This is the loss of
Hugging Face's and TRL's trainers. Llama 2's paper trains so too, "zeroing out the loss on tokens from the user prompt"
(section 3.1). Deviations from that paper: LoRA instead of all weights, and rows are not concatenated to fill a length:
the ragged forward computes no padding, so packing would gain nothing and only mix rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from finetune.data.prepare import PreparedSft, prepare_sft
from finetune.engine import loop, session
from finetune.engine.batches import Schedule, TokenBatch, collate, micro_batches, total_steps
from finetune.engine.job import Job, Outcome
from finetune.engine.token_logprobs import Hidden, hidden_function, token_logprobs
from finetune.recipe.learning_stages import SftStage
from finetune.recipe.train_settings import TrainSettings

PROOF_ROWS, PROOF_TOKENS = 4, 256
"""The reloaded adapter is compared on this many rows, each cut to this many tokens: enough to reach every weight."""


def run(stage: SftStage, job: Job) -> Outcome:
    """Train one adapter and prove it. Writes PEFT files, tokenizer, template and metrics into `job.out`."""
    train = stage.train
    words = session.open_words(job)
    data = prepare_sft(
        stage,
        model=job.model,
        seed=job.seed,
        locate=job.locate,
        stage_outputs=job.inputs,
        family=words.resolved.family,
        tokenizer=words.tokenizer,
        cache=job.cache,
        say=job.say,
    )
    session.check_words(job, int(data.rows.ids.max(initial=0)), data.report.lengths.longest)
    session.check_early_stop(train, data.held_out is not None)
    opened = session.open_session(job, train, stage.start_from)
    if stage.engine == "trl":
        from finetune.stages.trl_engine import train_sft  # only now: TRL and transformers' Trainer take seconds

        trained, resolved = train_sft(stage, job, opened, words, data)
    else:
        steps = total_steps(len(data.epoch_order(0)), train.batch_size, train.epochs, train.max_steps)
        work = sft_work(data, train, opened.base.model, opened.base.lm_head, steps)
        trained, resolved = session.run_loop(job, opened, opened.model, work, train)
    session.save(job, opened, words)
    proof = session.prove(job, opened, *_proof_rows(data))
    return Outcome(
        metrics=trained.metrics(),
        data=data.report.to_json(),
        family=session.describe_family(words),
        resolved=resolved,
        proof=proof,
    )


def sft_work(
    data: PreparedSft, train: TrainSettings, decoder: torch.nn.Module, head: torch.nn.Module, steps: int
) -> loop.Work[TokenBatch]:
    """The stage's work for the loop: which rows each step trains on, and the loss of a batch."""
    rows = data.train
    schedule = Schedule(data.epoch_order, len(data.epoch_order(0)), train.batch_size, steps)
    ragged = train.layout == "ragged"

    def step_batches(step: int) -> list[TokenBatch]:
        chosen = schedule.rows_of(step)
        cut = micro_batches(chosen, rows.lengths[chosen], train.micro_batch_size, balance=ragged)
        return [collate(rows, part) for part in cut]

    held_out = []
    if data.held_out is not None and len(data.held_out):
        everything = range(len(data.held_out))
        cut = micro_batches(everything, data.held_out.lengths, train.micro_batch_size, balance=False)
        held_out = [collate(data.held_out, part) for part in cut]
    return loop.Work(
        objective=partial(sft_objective, decoder=decoder, head=head, hidden=hidden_function(train.layout)),
        step_batches=step_batches,
        total_steps=steps,
        steps_per_epoch=schedule.steps_per_epoch,
        held_out=held_out,
        name_rows=partial(_name_rows, data),
    )


def sft_objective(
    model: torch.nn.Module, batch: TokenBatch, *, decoder: torch.nn.Module, head: torch.nn.Module, hidden: Hidden
) -> loop.Loss:
    """Negative log-probability, in nats, summed over the batch's trained tokens.

    decoder and head are the model's own, with LoRA in place; `model` itself is not called, since its forward would give
    every position's logits.
    """
    return loop.Loss(-token_logprobs(batch, decoder, head, hidden).sum())


def _proof_rows(data: PreparedSft) -> tuple[Tensor, list[int]]:
    """[T] ids and lengths of the first rows, held-out ones where there are any."""
    rows = data.held_out if data.held_out is not None and len(data.held_out) else data.train
    parts = [torch.tensor(rows.row(i)[0][:PROOF_TOKENS].astype("int64")) for i in range(min(PROOF_ROWS, len(rows)))]
    return torch.cat(parts), [len(part) for part in parts]


def _name_rows(data: PreparedSft, rows: Sequence[int]) -> str:
    names = [str(data.origin_of(int(row))) for row in rows[:8]]
    return ", ".join(names) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
