"""Supervised fine-tuning: maximise the log-probability of the answers.

Loss: the negative log-probability of every trained token, averaged over all trained tokens of an optimiser step (not
over rows, and not per micro-batch: each trained token counts the same, however the step is cut). This is the loss of
Hugging Face's and TRL's trainers. Llama 2's paper trains so too, "zeroing out the loss on tokens from the user prompt"
(section 3.1). Deviations from that paper: LoRA instead of all weights, and rows are not concatenated to fill a length:
the ragged forward computes no padding, so packing would gain nothing and only mix rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune.data.prepare import PreparedSft, prepare_sft
from finetune.data.save_tokenizer import save_tokenizer
from finetune.data.tokenizer import Tokenizer
from finetune.durable import require_space
from finetune.engine import loop
from finetune.engine.batches import Schedule, TokenBatch, collate, micro_batches, total_steps
from finetune.engine.job import Job, Outcome
from finetune.engine.optim import default_learning_rate
from finetune.engine.tracking import Wandb
from finetune.errors import BaseModelError, InputError
from finetune.families.detect import resolve
from finetune.model import adapter
from finetune.model.base import choose_device, choose_precision, describe, load_base
from finetune.model.ragged import Layout, padded_hidden, ragged_hidden
from finetune.numerics.logprobs import logprobs
from finetune.recipe.schema import SftStage, TrainSettings

Hidden = Callable[[torch.nn.Module, Tensor, Layout], Tensor]
PROOF_ROWS, PROOF_TOKENS = 4, 256
"""The reloaded adapter is compared on this many rows, each cut to this many tokens: enough to reach every weight."""


def run(stage: SftStage, job: Job) -> Outcome:
    """Train one adapter and prove it. Writes PEFT files, tokenizer, template and metrics into `job.out`."""
    train = stage.train
    tokenizer = Tokenizer.load(job.base.folder)
    resolved = resolve(
        job.base.config,
        tokenizer.special_tokens,
        job.model.template,
        base_name=job.base.name,
        base_chat_template=job.base.chat_template,
    )
    for line in resolved.said:
        job.say(line)
    data = prepare_sft(
        stage,
        model=job.model,
        seed=job.seed,
        locate=job.locate,
        stage_outputs=job.inputs,
        family=resolved.family,
        tokenizer=tokenizer,
        cache=job.cache,
        say=job.say,
    )
    _check_fits(stage, data, job)
    steps = total_steps(len(data.epoch_order(0)), train.batch_size, train.epochs, train.max_steps)

    device = choose_device(job.model.device)
    precision = choose_precision(job.model.load_in, job.model.compute, device)
    accelerator = loop.make_accelerator(device)
    base = load_base(job.base.folder, precision, device)
    job.say(f"base: {job.base.name}: {describe(base, precision, device)}")
    if stage.start_from is not None:
        start = job.inputs.get(stage.start_from) or job.locate(stage.start_from)
        model = adapter.open_adapter(base, start)
        # A saved adapter is an ordinary one, for the untouched base, however it began.
        settings = job.adapter.model_copy(update={"init": "default"})
    else:
        model = adapter.new_adapter(base, job.adapter, seed=job.seed)
        settings = job.adapter
    lora = model.peft_config[adapter.ADAPTER]
    if stage.start_from is not None:
        job.say(
            f"goes on from the adapter {start}: rank {lora.r}, alpha {lora.lora_alpha:g}; the recipe's adapter section "
            "is for fresh ones"
        )
    if train.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = adapter.trainable(model)
    count = sum(parameter.numel() for parameter in weights.values())
    require_space(job.out, _disk_bytes(weights, train), f"stage {job.name}")
    peak_rate = train.learning_rate
    if peak_rate == "auto":
        peak_rate = default_learning_rate(job.base.hidden_size, lora.lora_alpha, lora.r, lora.use_rslora)
    job.say(
        f"adapter: {count:,} trainable parameters; {steps} steps of {train.batch_size} rows; "
        f"learning rate {peak_rate:.3g}{' (auto)' if train.learning_rate == 'auto' else ''}, {train.schedule}"
    )
    adapter.keep_initial(model, settings, job.work)
    torch.manual_seed(job.seed)

    work = sft_work(data, train, base.model, base.lm_head, steps)
    resolved_settings = {
        "learning_rate": peak_rate,
        "total_steps": steps,
        "device": device.type,
        "compute": str(precision.compute).removeprefix("torch."),
        "trainable_parameters": count,
        "revision": job.base.revision,
    }
    tracker = _tracker(job, resolved_settings)
    failed = True
    try:
        trained = loop.train(
            model,
            work,
            train,
            peak_rate=peak_rate,
            accelerator=accelerator,
            compute=precision.compute,
            folder=job.work,
            title=job.name,
            tracker=tracker,
        )
        failed = False
    finally:
        if tracker is not None:
            tracker.close(failed=failed)

    base_name = job.base.name if job.base.revision else str(job.base.folder)
    adapter.save_adapter(model, settings, job.out, job.work, base_name=base_name, revision=job.base.revision)
    save_tokenizer(job.base.folder, tokenizer, resolved, job.out)
    ids_T, lengths = _proof_rows(data)
    fresh = load_base(job.base.folder, precision, device) if settings.init in ("pissa", "olora") else None
    with loop.autocast(device, precision.compute):
        proof = adapter.prove_reload(model, job.out, ids_T.to(device), lengths, fresh=fresh)
    job.say(f"proof: the adapter, loaded again, gives the trained logits (off by {proof['max_abs_difference']:g})")
    return Outcome(
        metrics=trained.metrics(),
        data=data.report.to_json(),
        family={
            "name": resolved.family.name,
            "template": resolved.family.template,
            "generation": resolved.generation,
            "licence": resolved.family.licence,
            "pad_token": resolved.pad_token,
            "stop_tokens": list(resolved.family.stop_tokens),
        },
        resolved=resolved_settings,
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
        objective=partial(token_loss, decoder=decoder, head=head, hidden=ragged_hidden if ragged else padded_hidden),
        step_batches=step_batches,
        total_steps=steps,
        steps_per_epoch=schedule.steps_per_epoch,
        held_out=held_out,
        name_rows=partial(_name_rows, data),
    )


def token_loss(
    model: torch.nn.Module, batch: TokenBatch, *, decoder: torch.nn.Module, head: torch.nn.Module, hidden: Hidden
) -> Tensor:
    """Negative log-probability, in nats, summed over the batch's trained tokens.

    decoder and head are the model's own, with LoRA in place; `model` itself is not called, since its forward would give
    every position's logits.
    """
    hidden_TD = hidden(decoder, batch.ids_T, batch.layout)
    return -logprobs(hidden_TD.index_select(0, batch.predict_N), batch.labels_N, head).sum()


def _check_fits(stage: SftStage, data: PreparedSft, job: Job) -> None:
    """What the data and the base have to say to each other. Raises InputError."""
    words, largest = int(job.base.config["vocab_size"]), int(data.rows.ids.max(initial=0))
    if largest >= words:
        raise BaseModelError(
            f"{job.base.folder}: its tokenizer gives the id {largest}, but its config.json says vocab_size {words}: "
            "the tokenizer belongs to another checkpoint. Take both from the same one"
        )
    if stage.train.early_stop is not None and data.held_out is None:
        raise InputError(
            "train.early_stop needs held-out rows, and none could be held out: give more rows, or held_out.data"
        )
    positions = job.base.config.get("max_position_embeddings")
    if positions is not None and data.report.lengths.longest > positions:
        job.say(
            f"rows of up to {data.report.lengths.longest:,} tokens are longer than the {positions:,} positions the "
            f"base was made for; model.max_length: {positions} would leave them out"
        )


def _disk_bytes(weights: dict[str, torch.nn.Parameter], train: TrainSettings) -> int:
    """Final adapter, plus as many checkpoints (weights, two optimiser moments) as are kept and one being written."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in weights.values())
    moments = 0.5 if "8bit" in train.optimizer else 2.0
    best = 1 if train.early_stop is not None else 0
    return int(size * (1 + (1 + moments + best) * (train.keep_checkpoints + 1))) + 32 * 2**20


def _tracker(job: Job, resolved: dict[str, Any]) -> Wandb | None:
    if job.wandb is None:
        return None
    config = {"recipe": job.recipe_name, "stage": job.name, "fingerprint": job.fingerprint, **resolved}
    return Wandb(
        job.wandb,
        name=f"{job.recipe_name}/{job.name}",
        config=config,
        folder=job.work,
        run_id=f"{job.name}-{job.fingerprint[:12]}",
    )


def _proof_rows(data: PreparedSft) -> tuple[Tensor, list[int]]:
    """[T] ids and lengths of the first rows, held-out ones where there are any."""
    rows = data.held_out if data.held_out is not None and len(data.held_out) else data.train
    parts = [torch.tensor(rows.row(i)[0][:PROOF_TOKENS].astype("int64")) for i in range(min(PROOF_ROWS, len(rows)))]
    return torch.cat(parts), [len(part) for part in parts]


def _name_rows(data: PreparedSft, rows: Sequence[int]) -> str:
    names = [str(data.origin_of(int(row))) for row in rows[:8]]
    return ", ".join(names) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
