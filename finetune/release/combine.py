"""How several changes of one tensor become one. Pure functions on tensors, [O, I] or any shape, float32.

linear: the weighted sum of the changes; exactly what concatenating the adapters' ranks gives (peft's `cat`; peft's own
  `linear` averages A and B apart, whose product is no average of the changes, and is not offered).
svd: the same sum, nearest of a given rank, by QR of the stacked factors, so that [O, I] is never decomposed.
ties: Yadav et al. 2023 (arXiv 2306.01708): keep the `density` largest values of each change, choose each place's
  sign by the sum, average the weighted values of that sign.
dare: Yu et al. 2023 (arXiv 2311.03099): each value survives with probability `density`, divided by it; then sum.
slerp: along the sphere between two weights, each tensor as one vector; a straight line where they point alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.release.lora import Update

_ALIKE = 0.9995
"""Cosine above which the sine of the angle is too small to divide by in float32; mergekit's constant."""


def linear(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ weight · change."""
    total = torch.zeros_like(changes[0])
    for change, weight in zip(changes, weights, strict=True):
        total += weight * change
    return total


def nearest_of_rank(updates: Sequence[Update], weights: Sequence[float], rank: int) -> tuple[Tensor, float]:
    """The weighted sum of low-rank changes cut to `rank`, and what was cut off: its norm relative to the sum's."""
    b_OK = torch.cat(
        [update.b_OR * (weight * update.scale) for update, weight in zip(updates, weights, strict=True)], 1
    )
    a_KI = torch.cat([update.a_RI for update in updates], 0)
    left, upper = torch.linalg.qr(b_OK)
    right, lower = torch.linalg.qr(a_KI.T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    kept = (left @ u[:, :rank]) * values[:rank] @ (v[:rank] @ right.T)
    total = values.square().sum()
    lost = values[rank:].square().sum() / total if total > 0 else total
    return kept, float(lost.sqrt())


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """Trim, elect a sign, average what agrees."""
    trimmed = [_largest(change, density) for change in changes]
    sign = torch.where(torch.stack(trimmed).sum(0) >= 0, 1.0, -1.0)
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for change, weight in zip(trimmed, weights, strict=True):
        agrees = change.sign() == sign
        total += torch.where(agrees, change * weight, 0.0)
        count += agrees
    return total / count.clamp(min=1)


def dare(changes: Sequence[Tensor], weights: Sequence[float], density: float, key: str) -> Tensor:
    """Drop values at random and rescale. key: fixes the draw, for a tensor of a merge with a seed."""
    total = torch.zeros_like(changes[0])
    for index, (change, weight) in enumerate(zip(changes, weights, strict=True)):
        seed = int.from_bytes(hashlib.sha256(f"{key}\0{index}".encode()).digest()[:7], "little")
        kept = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed)) < density
        total += torch.where(kept, change * (weight / density), 0.0)
    return total


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """From `first` (share 0) to `second` (share 1)."""
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    if abs(cosine) > _ALIKE:
        return (1 - share) * first + share * second
    angle = torch.tensor(cosine).acos()
    return (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def _largest(change: Tensor, density: float) -> Tensor:
    """The `density` share of values that are largest in size; the others 0."""
    keep = int(density * change.numel())
    if keep == 0:
        return torch.zeros_like(change)
    sizes = change.abs()
    least = sizes.reshape(-1).kthvalue(change.numel() - keep + 1).values
    return torch.where(sizes >= least, change, 0.0)
