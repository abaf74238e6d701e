"""Optimisers and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from finetune.recipe.train_settings import TrainSettings


def make_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], settings: TrainSettings
) -> torch.optim.Optimizer:
    """AdamW by torch, or by bitsandbytes with 8-bit or pageable state. The learning rate is set before every step.

    parameters: or groups of them, as torch's optimisers take them.
    """
    options = {"lr": 0.0, "betas": settings.betas, "eps": 1e-8, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    from bitsandbytes import optim

    kind = {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW32bit,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }[settings.optimizer]
    return kind(parameters, **options)


def warmup_steps(warmup: float, total: int) -> int:
    """`warmup` below 1 is a share of all steps (rounded up), from 1 on a number of steps; never more than `total`."""
    return min(total, math.ceil(warmup * total) if warmup < 1 else int(warmup))


def learning_rate(step: int, *, peak: float, total: int, warmup: int, schedule: str) -> float:
    """The rate of optimiser step `step` (from 0): a line from 0 to `peak` over `warmup` steps, then the schedule.

    The same numbers as transformers' get_{cosine,linear,constant}_schedule_with_warmup, but the first step of a warm-up
    is not wasted at rate 0: step s of w is at (s + 1) / w.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(1, total - warmup)
    return peak * (1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def default_learning_rate(hidden_size: int, alpha: float, rank: int, rslora: bool) -> float:
    """Peak rate for LoRA on a LLaMA of this width: 5e-4 (2000 / hidden_size)^0.781 at the scale 32 / rank.

    Source: tinker-cookbook's fit over Llama 1B to 405B, which agrees with "LoRA Without Regret" (ten times the rate of
    full fine-tuning, independent of rank). The fit's alpha is 32: rate x scale is kept when the recipe's scale differs.
    """
    fitted = 5e-4 * (2000 / hidden_size) ** 0.781
    scale = alpha / math.sqrt(rank) if rslora else alpha / rank
    return fitted * (32 / rank) / scale
