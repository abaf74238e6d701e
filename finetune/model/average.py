"""The weighted mean of LoRA adapters as one LoRA adapter: exact, or the nearest of a smaller rank.

A LoRA layer adds s B A to a weight. The mean of n of them, sum_i w_i s_i B_i A_i, is itself of that form: the A_i one
below the other, and the w_i s_i / s B_i side by side, whose rank is the sum of theirs. Nothing is lost, whatever the
ranks, scales and layers; averaging A and B instead would give a mean of nothing. A smaller rank is the truncated
singular value decomposition of that product (Eckart-Young: the nearest in the Frobenius norm), which QR of the two thin
factors makes a small problem: the full O x I matrix is never formed. All arithmetic is in float64.

Letters: I input and O output dimensions of a layer, R summed rank, r rank, n adapters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from finetune.errors import InputError
from finetune.model.adapter import read_adapter
from finetune.model.reward import HEAD_KEY

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_VARIANTS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""Settings of peft under which an adapter is more than s B A."""
_PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Settings of peft that say which layers an adapter is on."""


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter as it lies on disk. factors: layer -> (A [r, I], B [O, r]). modules: whole weights by their key,
    what modules_to_save names and a reward model's head."""

    folder: Path
    config: LoraConfig
    factors: Mapping[str, tuple[Tensor, Tensor]]
    modules: Mapping[str, Tensor]

    @property
    def is_reward(self) -> bool:
        return HEAD_KEY in self.modules

    def scale(self, layer: str) -> float:
        """s of a layer, as peft computes it."""
        config = self.config
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), layer), config.lora_alpha)
        rank = len(self.factors[layer][0])
        return float(alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)


@dataclass(frozen=True)
class Averaged:
    """tensors: of adapter_model.safetensors, float32 (whole weights in their own type). config: of
    adapter_config.json. distance: Frobenius norm of what a smaller rank left out, over all layers, relative to the
    mean's; distances: of each layer. 0 = exact."""

    tensors: Mapping[str, Tensor]
    config: LoraConfig
    distance: float
    distances: Mapping[str, float]


def read_lora(folder: Path) -> Lora:
    """Read an adapter folder onto the CPU. Raises InputError where it is none, or more than a LoRA."""
    tensors, config = read_adapter(folder)
    if not isinstance(config, LoraConfig):
        raise InputError(f"{folder} is no LoRA adapter, its peft_type is {config.peft_type.value}")
    special = [name for name in _VARIANTS if getattr(config, name, None)]
    if config.bias != "none":
        special.append(f"bias: {config.bias}")
    if special:
        raise InputError(f"{folder} has {special[0]}: only plain LoRA adapters have a mean that is a LoRA adapter")
    factors, modules = {}, {}
    for key, tensor in tensors.items():
        if key.endswith(_A) and (other := tensors.get(key.removesuffix(_A) + _B)) is not None:
            factors[key.removesuffix(_A).removeprefix(_PREFIX)] = (tensor, other)
        elif key.endswith(_B) and key.removesuffix(_B) + _A in tensors:
            continue
        elif ".lora_" in key:
            raise InputError(f"{folder}: {key} is no factor of a linear layer's LoRA: it cannot be averaged")
        else:
            modules[key] = tensor
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{folder}: {key} has values that are not finite: the mean would have them too")
    if (config.task_type == "SEQ_CLS") != (HEAD_KEY in modules):
        raise InputError(f"{folder}: task_type is {config.task_type}, but its head {HEAD_KEY} says otherwise")
    return Lora(folder, config, factors, modules)


def check_alike(adapters: Sequence[Lora]) -> None:
    """Whether the adapters have a mean: one sort, one base's shapes, the same whole weights. Raises InputError."""
    first = adapters[0]
    shapes = {layer: (a.shape[1], b.shape[0], first.folder) for layer, (a, b) in first.factors.items()}
    for other in adapters[1:]:
        if other.is_reward != first.is_reward:
            reward, writer = (other, first) if other.is_reward else (first, other)
            raise InputError(f"{reward.folder} is a reward model and {writer.folder} is not: they have no mean")
        if astray := sorted(first.modules.keys() ^ other.modules.keys()):
            holder, lacks = (first, other) if astray[0] in first.modules else (other, first)
            raise InputError(
                f"{holder.folder} has {astray[0]} as a whole (modules_to_save), {lacks.folder} has not: average "
                "adapters with the same modules_to_save"
            )
        for key, tensor in other.modules.items():
            if tensor.shape != first.modules[key].shape:
                raise InputError(f"{key} has other shapes in {other.folder} and {first.folder}: not the same base")
        for layer, (a, b) in other.factors.items():
            inside, outside, known = shapes.setdefault(layer, (a.shape[1], b.shape[0], other.folder))
            if (a.shape[1], b.shape[0]) != (inside, outside):
                raise InputError(f"{layer} has other dimensions in {other.folder} and {known}: not the same base")


def average(adapters: Sequence[Lora], weights: Sequence[float], rank: int | None) -> Averaged:
    """The weighted mean of adapters that `check_alike` let through. weights: positive, of sum 1.

    rank: of the result, None = the sum of theirs, which is exact. A layer of no larger a summed rank stays exact.
    The result's scale is the weighted mean of theirs, so B keeps its size.
    """
    layers = sorted({layer for adapter in adapters for layer in adapter.factors})
    scale = sum(w * _general_scale(adapter.config) for adapter, w in zip(adapters, weights, strict=True))
    thin, kept, whole = {}, {}, {}
    for layer in layers:
        a_RI, b_OR = mean_factors(adapters, weights, layer)
        whole[layer] = product_norm(a_RI, b_OR) ** 2
        left_out = 0.0
        if rank is not None and rank < len(a_RI):
            a_RI, b_OR, left_out = truncated(a_RI, b_OR, rank)
        thin[layer], kept[layer] = (a_RI, b_OR), left_out
    config = _config_of(adapters, {layer: len(a_rI) for layer, (a_rI, _) in thin.items()}, scale)
    result = Lora(adapters[0].folder, config, thin, {})
    tensors = {}
    for layer, (a_rI, b_Or) in thin.items():
        tensors[f"{_PREFIX}{layer}{_A}"] = a_rI.float().contiguous()
        tensors[f"{_PREFIX}{layer}{_B}"] = (b_Or / result.scale(layer)).float().contiguous()
    for key, tensor in adapters[0].modules.items():
        tensors[key] = mean_module(adapters, weights, key).to(tensor.dtype).contiguous()
    total = sum(whole.values())
    return Averaged(
        tensors,
        config,
        math.sqrt(sum(kept.values()) / total) if total else 0.0,
        {layer: math.sqrt(kept[layer] / whole[layer]) if whole[layer] else 0.0 for layer in layers},
    )


def mean_factors(adapters: Sequence[Lora], weights: Sequence[float], layer: str) -> tuple[Tensor, Tensor]:
    """(A [R, I], B [O, R]) in float64, whose product B A is the mean of what the adapters add to the layer."""
    having = [(adapter, w) for adapter, w in zip(adapters, weights, strict=True) if layer in adapter.factors]
    a_RI = torch.cat([adapter.factors[layer][0].double() for adapter, _ in having])
    b_OR = torch.cat([w * adapter.scale(layer) * adapter.factors[layer][1].double() for adapter, w in having], dim=1)
    return a_RI, b_OR


def mean_module(adapters: Sequence[Lora], weights: Sequence[float], key: str) -> Tensor:
    """The weighted mean of a whole weight, in float64."""
    return torch.stack([w * a.modules[key].double() for a, w in zip(adapters, weights, strict=True)]).sum(0)


def truncated(a_RI: Tensor, b_OR: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The factors of rank r (or less, where the layer is narrower) nearest to B A, and the squared norm left out.

    A's rows are orthonormal and B carries the singular values, so that a direction of none can still be trained.
    """
    q_b, r_b = torch.linalg.qr(b_OR)
    q_a, r_a = torch.linalg.qr(a_RI.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    left_out = float(s[rank:].square().sum())
    return vh[:rank] @ q_a.T, q_b @ (u[:, :rank] * s[:rank]), left_out


def product_norm(a_RI: Tensor, b_OR: Tensor) -> float:
    """Frobenius norm of B A, from the triangular factors of both."""
    r_b = torch.linalg.qr(b_OR, mode="r").R
    r_a = torch.linalg.qr(a_RI.T, mode="r").R
    return float(torch.linalg.matrix_norm(r_b @ r_a.T))


def differences(
    saved: Lora, adapters: Sequence[Lora], weights: Sequence[float], left_out: Mapping[str, float]
) -> dict[str, float]:
    """For each layer and whole weight, how far `saved` is from where it has to be, relative to its parts' size.

    It has to be at the mean; or, where a smaller rank left out a share of the mean's norm (`left_out`, by layer), at
    just that distance from it. A layer's size is the weighted mean of the norms of what the adapters add to it, not the
    norm of their mean: of adapters that cancel out only rounding is left there.
    """
    found = {}
    for layer in sorted({layer for adapter in adapters for layer in adapter.factors} | saved.factors.keys()):
        a_RI, b_OR = mean_factors(adapters, weights, layer)
        a_rI, b_Or = mean_factors([saved], [1.0], layer)
        size = sum(
            w * product_norm(*mean_factors([adapter], [1.0], layer))
            for adapter, w in zip(adapters, weights, strict=True)
            if layer in adapter.factors
        )
        off = product_norm(torch.cat([a_RI, a_rI]), torch.cat([b_OR, -b_Or], dim=1))
        expected = left_out.get(layer, 0.0) * product_norm(a_RI, b_OR)
        found[layer] = abs(off - expected) / (size or 1.0)
    for key, tensor in saved.modules.items():
        mean = mean_module(adapters, weights, key)
        found[key] = float((tensor.double() - mean).norm()) / (float(mean.norm()) or 1.0)
    return found


def _general_scale(config: LoraConfig) -> float:
    return float(config.lora_alpha / math.sqrt(config.r) if config.use_rslora else config.lora_alpha / config.r)


def _config_of(adapters: Sequence[Lora], ranks: Mapping[str, int], scale: float) -> LoraConfig:
    """The first adapter's configuration, with the result's ranks, alphas and layers, and the largest dropout."""
    config = deepcopy(adapters[0].config)
    config.r = max(ranks.values())
    config.lora_alpha = _alpha(scale * config.r)
    config.rank_pattern = {layer: rank for layer, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {layer: _alpha(scale * rank) for layer, rank in ranks.items() if rank != config.r}
    config.use_rslora = False
    config.init_lora_weights = True
    config.inference_mode = True
    config.lora_dropout = max(adapter.config.lora_dropout for adapter in adapters)
    # Who is on all layers of the result says where they are; else each is named.
    covers = next((adapter.config for adapter in adapters if adapter.factors.keys() == ranks.keys()), None)
    for name in _PLACES:
        setattr(config, name, deepcopy(getattr(covers, name)) if covers is not None else None)
    if covers is None:
        config.target_modules = sorted(ranks)
    return config


def _alpha(alpha: float) -> float:
    """A whole number where it is one, as peft's own configurations have it (its type says int; it takes both)."""
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
