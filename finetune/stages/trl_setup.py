"""What every training by one of TRL's trainers needs of ours: settings under TRL's names, optimiser, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.state import AcceleratorState
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoTokenizer

from finetune.data.save_tokenizer import save_tokenizer
from finetune.engine import session
from finetune.engine.job import Job
from finetune.engine.optim import learning_rate, make_optimizer, warmup_steps
from finetune.errors import InputError
from finetune.model import adapter
from finetune.recipe.train_settings import TrainSettings

_OPTIONS = {
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "save_strategy": "steps",
    "push_to_hub": False,
}
"""What every run has alike; the rows come in our order, and nothing is sent anywhere."""


def require_trl(what: str = "engine trl") -> Any:
    """The trl module. Raises InputError where it is not installed."""
    try:
        import trl
    except ImportError as error:
        raise InputError(f"{what}: TRL is not installed: pip install 'finetune[trl]'") from error
    return trl


def arguments(train: TrainSettings, job: Job, opened: session.Session, steps: int) -> dict[str, Any]:
    """The recipe's training settings under TRL's names. The learning rate comes with the optimiser."""
    return {
        "output_dir": str(job.work / "checkpoints"),
        "max_steps": steps,
        "per_device_train_batch_size": train.micro_batch_size,
        "per_device_eval_batch_size": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // train.micro_batch_size,
        "max_grad_norm": train.max_grad_norm or 0.0,
        "gradient_checkpointing": train.gradient_checkpointing,
        "bf16": opened.precision.compute == torch.bfloat16,
        "use_cpu": opened.device.type == "cpu",
        "dataloader_pin_memory": opened.device.type == "cuda",
        "seed": job.seed,
        "save_steps": train.checkpoint_every or max(1, -(-steps // 10)),
        "save_total_limit": train.keep_checkpoints,
        **_OPTIONS,
    }


def optimiser(
    model: nn.Module, train: TrainSettings, rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The same optimiser and learning rates as engine finetune has, in the form that a Trainer takes."""
    optimizer = make_optimizer(list(adapter.trainable(model).values()), train)
    for group in optimizer.param_groups:
        group["lr"] = rate
    share = partial(
        learning_rate, peak=1.0, total=steps, warmup=warmup_steps(train.warmup, steps), schedule=train.schedule
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(min(step, steps - 1)))


def trl_tokenizer(job: Job, words: session.Words, kind: Any = AutoTokenizer) -> Any:
    """The tokenizer as it is saved with the adapter, with its padding token. kind: the class to load it as."""
    folder = job.work / "tokenizer"
    folder.mkdir(exist_ok=True)
    save_tokenizer(job.base.folder, words.tokenizer, words.resolved, folder)
    return kind.from_pretrained(folder, local_files_only=True)


@contextmanager
def lent_to_trl(job: Job, model: nn.Module) -> Iterator[None]:
    """While TRL trains the model. Afterwards: no later stage gets the base or the precision that TRL left, and the
    adapter's weights are float32 again (TRL trains those of 4-bit bases in bf16)."""
    try:
        yield
    finally:
        job.bases.forget()  # what TRL's trainers leave on a base is theirs to know
        # accelerate keeps one precision for the process, and the Trainer has set its own; later stages choose again.
        # There is no public way; transformers' TrainingArguments makes the same call before every training.
        AcceleratorState._reset_state(reset_partial_state=True)
    for parameter in adapter.trainable(model).values():
        parameter.data = parameter.data.float()


def refuse_trained_head(opened: session.Session) -> None:
    """TRL's fused head cannot be a LoRA layer. Raises InputError."""
    if isinstance(opened.model.get_output_embeddings(), BaseTunerLayer):
        raise InputError(
            "engine trl: TRL cannot train LoRA on lm_head; leave it out of adapter.targets, or train it whole with "
            "adapter.modules_to_save"
        )
