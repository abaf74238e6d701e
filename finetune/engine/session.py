"""What every training stage does before and after its own part: family, base, adapter, rate, tracking, saving.

A session is one base in memory with one trainable adapter on it; stages add what they need (heads, references).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import LlamaForCausalLM

from finetune.data.save_tokenizer import save_tokenizer
from finetune.data.tokenizer import Tokenizer
from finetune.durable import require_space
from finetune.engine import loop
from finetune.engine.job import Job
from finetune.engine.optim import default_learning_rate
from finetune.errors import BaseModelError, InputError
from finetune.families.detect import Resolved, resolve
from finetune.model import adapter
from finetune.model.base import Precision, choose_device, choose_precision, describe, load_base
from finetune.plan.manifest import read_manifest
from finetune.recipe.settings import AdapterSettings
from finetune.recipe.train_settings import TrainSettings


@dataclass(frozen=True)
class Words:
    """The tokenizer of a base and the family that was detected or named."""

    tokenizer: Tokenizer
    resolved: Resolved


@dataclass(frozen=True)
class Session:
    """base: frozen. model: base with the trainable adapter. start: the adapter folder it goes on from, None = fresh.

    settings: of the adapter as it will be saved. lora: peft's configuration of it.
    """

    base: LlamaForCausalLM
    model: PeftModel
    settings: AdapterSettings
    start: Path | None
    device: torch.device
    precision: Precision
    accelerator: Accelerator

    @property
    def lora(self) -> Any:
        return self.model.peft_config[adapter.ADAPTER]


def open_words(job: Job) -> Words:
    """Load the tokenizer, detect the family, and say what was concluded."""
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
    return Words(tokenizer, resolved)


def check_words(job: Job, largest_id: int, longest_row: int) -> None:
    """The tokenizer must belong to the base; rows beyond its positions are said aloud. Raises BaseModelError."""
    words = int(job.base.config["vocab_size"])
    if largest_id >= words:
        raise BaseModelError(
            f"{job.base.folder}: its tokenizer gives the id {largest_id}, but its config.json says vocab_size {words}: "
            "the tokenizer belongs to another checkpoint. Take both from the same one"
        )
    positions = job.base.config.get("max_position_embeddings")
    if positions is not None and longest_row > positions:
        job.say(
            f"rows of up to {longest_row:,} tokens are longer than the {positions:,} positions the base was made for; "
            f"model.max_length: {positions} would leave them out"
        )


def check_early_stop(train: TrainSettings, has_held_out: bool) -> None:
    """early_stop watches the held-out loss. Raises InputError where there is none."""
    if train.early_stop is not None and not has_held_out:
        raise InputError(
            "train.early_stop needs held-out rows, and none could be held out: give more rows, or held_out.data"
        )


def open_session(job: Job, train: TrainSettings, start_from: str | None) -> Session:
    """Load the base and put the adapter on it: a fresh one, or the one the stage starts from."""
    device = choose_device(job.model.device)
    precision = choose_precision(job.model.load_in, job.model.compute, device)
    accelerator = loop.make_accelerator(device)
    base = job.bases.get(job.base.folder, precision, device)
    job.say(f"base: {job.base.name}: {describe(base, precision, device)}")
    start = None
    if start_from is None:
        model, settings = adapter.new_adapter(base, job.adapter, seed=job.seed), job.adapter
        if settings.init in ("pissa", "olora"):
            job.bases.forget()  # part of its weights is in the adapter now: no base for the next stage
    else:
        start = job.inputs.get(start_from) or job.locate(start_from)
        _check_same_base(job, start)
        model = adapter.open_adapter(base, start)
        # A saved adapter is an ordinary one, for the untouched base, however it began.
        settings = job.adapter.model_copy(update={"init": "default"})
    if train.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    session = Session(base, model, settings, start, device, precision, accelerator)
    if start is not None:
        job.say(
            f"goes on from the adapter {start}: rank {session.lora.r}, alpha {session.lora.lora_alpha:g}; the recipe's "
            "adapter section is for fresh ones"
        )
    return session


def _check_same_base(job: Job, start: Path) -> None:
    """An adapter of ours says what it was trained on; on another base of the same shape it would mean nothing."""
    manifest = read_manifest(start)
    if manifest is not None and manifest["base"]["digest"] != job.base.digest:
        raise InputError(
            f"start_from: {start} was trained on another base ({manifest['base']['name']}): an adapter is the "
            f"difference to its own base. Start from an adapter of {job.base.name}"
        )


def run_loop(
    job: Job,
    session: Session,
    model: torch.nn.Module,
    work: loop.Work[Any],
    train: TrainSettings,
    *,
    rate_factor: float = 1.0,
) -> tuple[loop.Trained, dict[str, Any]]:
    """Train in the engine's loop, as `run_trainer` says. model: the session's model or a wrap of it."""

    def in_loop(rate: float) -> loop.Trained:
        return loop.train(
            model,
            work,
            train,
            peak_rate=rate,
            accelerator=session.accelerator,
            compute=session.precision.compute,
            folder=job.work,
            title=job.name,
            tracking=job.tracking,
            make_screen=job.progress,
        )

    keeps_best = train.early_stop is not None or work.cycle is not None  # a cycle's last good weights
    return run_trainer(
        job, session, model, work.total_steps, train, in_loop, rate_factor=rate_factor, keeps_best=keeps_best
    )


def run_trainer(
    job: Job,
    session: Session,
    model: torch.nn.Module,
    total_steps: int,
    train: TrainSettings,
    trainer: Callable[[float], loop.Trained],
    *,
    rate_factor: float = 1.0,
    keeps_best: bool = False,
) -> tuple[loop.Trained, dict[str, Any]]:
    """Announce, check the disk, and train with tracking.

    trainer: peak learning rate -> what training left. rate_factor: multiplies the automatic learning rate.
    keeps_best: checkpoints hold a second set of weights. Returns what the trainer left and what was resolved.
    """
    weights = adapter.trainable(model)
    count = sum(parameter.numel() for parameter in weights.values())
    require_space(job.out, _disk_bytes(weights, train, keeps_best), f"stage {job.name}")
    rate = train.learning_rate
    if rate == "auto":
        lora = session.lora
        rate = rate_factor * default_learning_rate(job.base.hidden_size, lora.lora_alpha, lora.r, lora.use_rslora)
    job.say(
        f"adapter: {count:,} trainable parameters; {total_steps} steps of {train.batch_size} rows; "
        f"learning rate {rate:.3g}{' (auto)' if train.learning_rate == 'auto' else ''}, {train.schedule}"
    )
    adapter.keep_initial(session.model, session.settings, job.work)
    resolved = {
        "learning_rate": rate,
        "total_steps": total_steps,
        "device": session.device.type,
        "compute": str(session.precision.compute).removeprefix("torch."),
        "trainable_parameters": count,
        "revision": job.base.revision,
    }
    job.tracking.begin(resolved)
    torch.manual_seed(job.seed)
    return trainer(rate), resolved


def save(job: Job, session: Session, words: Words) -> None:
    """Write adapter, tokenizer, template and generation settings into `job.out`."""
    name = job.base.name if job.base.revision else str(job.base.folder)
    adapter.save_adapter(session.model, session.settings, job.out, job.work, base_name=name, revision=job.base.revision)
    save_tokenizer(job.base.folder, words.tokenizer, words.resolved, job.out)


def prove(job: Job, session: Session, ids_T: torch.Tensor, lengths: list[int]) -> dict[str, Any]:
    """Load the saved adapter again and compare its logits with the trained model's. Raises ProofError."""
    fresh = fresh_base(job, session)
    with loop.autocast(session.device, session.precision.compute):
        proof = adapter.prove_reload(session.model, job.out, ids_T.to(session.device), lengths, fresh=fresh)
    job.say(f"proof: the adapter, loaded again, gives the trained logits (off by {proof['max_abs_difference']:g})")
    return proof


def fresh_base(job: Job, session: Session) -> LlamaForCausalLM | None:
    """The base once more, where the adapter's initialisation has changed the one in memory; else None."""
    if session.settings.init in ("pissa", "olora"):
        return load_base(job.base.folder, session.precision, session.device)
    return None


def stop_ids(words: Words) -> frozenset[int]:
    """Every token at which an answer ends, by the family."""
    found = (words.tokenizer.id_of(token) for token in words.resolved.family.eos_tokens)
    return frozenset(index for index in found if index is not None)


def describe_family(words: Words) -> Mapping[str, Any]:
    """What the manifest says of the family."""
    family = words.resolved.family
    return {
        "name": family.name,
        "template": family.template,
        "generation": words.resolved.generation,
        "licence": family.licence,
        "pad_token": words.resolved.pad_token,
        "stop_tokens": list(family.stop_tokens),
    }


def _disk_bytes(weights: Mapping[str, torch.nn.Parameter], train: TrainSettings, keeps_best: bool) -> int:
    """Final adapter, plus as many checkpoints (weights, two optimiser moments, perhaps the best weights) as are kept
    and one being written."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in weights.values())
    moments = 0.5 if "8bit" in train.optimizer else 2.0
    return int(size * (1 + (1 + moments + keeps_best) * (train.keep_checkpoints + 1))) + 32 * 2**20
