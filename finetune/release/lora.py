"""A saved LoRA adapter as changes of the base's tensors, read one tensor at a time.

The formulas are peft 0.21's: scale alpha / r, or alpha / sqrt(r) with rslora, where `alpha_pattern` and `rank_pattern`
may speak for a layer; DoRA gives every row of W + scale B A the length that was trained. What of peft's
is none of these is refused, never left out.

Legend: O outputs and I inputs of a layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from finetune.errors import BaseModelError, InputError
from finetune.plan.base_files import read_json
from finetune.release.tensors import Place, read_places

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
HEAD = "score.weight"
"""The reward head's name in a sequence classifier."""
_PREFIX = "base_model.model."
_REFUSED: tuple[
    tuple[str, tuple[Any, ...]], ...
] = (  # (field of adapter_config.json, values it may have): others change the formula
    ("peft_type", ("LORA",)),
    ("bias", ("none", None)),
    ("fan_in_fan_out", (False, None)),
    ("lora_bias", (False, None)),
    ("layer_replication", (None,)),
    ("target_parameters", (None, [])),
    ("trainable_token_indices", (None, [], {})),
    ("alora_invocation_tokens", (None, [])),
    ("ensure_weight_tying", (False, None)),
)


@dataclass(frozen=True)
class Update:
    """W becomes W + scale * b_OR @ a_RI; with lengths_O (DoRA) each row is then given that length."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    lengths_O: Tensor | None

    def delta(self) -> Tensor:
        """[O, I] float32: the low-rank product, without DoRA's lengths."""
        return (self.b_OR @ self.a_RI) * self.scale

    def apply(self, weight_OI: Tensor) -> Tensor:
        """[O, I] float32: the changed weight."""
        changed_OI = weight_OI + self.delta()
        if self.lengths_O is None:
            return changed_OI
        norms_O = torch.linalg.norm(changed_OI, dim=1)
        return changed_OI * (self.lengths_O / norms_O)[:, None]


@dataclass(frozen=True)
class Lora:
    """updates: base tensor name -> places of its A, B and (DoRA) magnitude. whole: tensors trained in full."""

    folder: Path
    config: Mapping[str, Any]
    updates: Mapping[str, tuple[Place, Place, Place | None]]
    whole: Mapping[str, Place]
    is_model: bool = False
    """A whole model, taken as a change of all tensors of another."""

    @property
    def is_reward(self) -> bool:
        return HEAD in self.whole

    @property
    def names(self) -> set[str]:
        """The base tensors that it changes."""
        return {*self.updates, *self.whole}

    def update(self, name: str) -> Update:
        """The change of one tensor, in float32."""
        a, b, lengths = self.updates[name]
        return Update(
            a.read().float(),
            b.read().float(),
            self.scale(name),
            None if lengths is None else lengths.read().float().reshape(-1),
        )

    def scale(self, name: str) -> float:
        """What B A of a tensor is multiplied by."""
        layer = name.removesuffix(".weight")
        ranks, alphas = self.config.get("rank_pattern") or {}, self.config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(ranks.keys(), layer), self.config["r"])
        alpha = alphas.get(get_pattern_key(alphas.keys(), layer), self.config["lora_alpha"])
        if (found := self.updates[name][0].shape[0]) != rank:
            raise InputError(f"{self.folder}: {name} has rank {found}, its {CONFIG} says {rank}: it is damaged")
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)


def open_lora(folder: Path) -> Lora:
    """Read where an adapter's tensors lie. Raises InputError: no adapter, a damaged one, one of an unknown kind."""
    try:
        config = read_json(folder / CONFIG)
        places = read_places(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    except BaseModelError as error:
        raise InputError(f"the adapter in {folder} is damaged: {error}") from error
    if config is None or places is None:
        raise InputError(f"{folder} holds no adapter: {CONFIG} and {WEIGHTS} are needed")
    for field, allowed in _REFUSED:
        if config.get(field) not in allowed:
            raise InputError(f"{folder}: {CONFIG} has {field} {config.get(field)!r}, which is not merged here")
    if not all(isinstance(config.get(key), int | float) and config[key] > 0 for key in ("r", "lora_alpha")):
        raise InputError(f"{folder}: {CONFIG} has no r or no lora_alpha: it is damaged")
    parts: dict[str, dict[str, Place]] = {}
    whole: dict[str, Place] = {}
    for key, place in places.items():
        name = key.removeprefix(_PREFIX)
        layer, mark, part = name.partition(".lora_")
        if not key.startswith(_PREFIX):
            raise InputError(f"{folder}: {key} is no tensor of a LoRA adapter")
        if mark:
            parts.setdefault(f"{layer}.weight", {})[part.removesuffix(".weight")] = place
        else:
            whole[name] = place
    for name, found in parts.items():
        if not {"A", "B"} <= found.keys() <= {"A", "B", "magnitude_vector"}:
            raise InputError(f"{folder}: {name} has the LoRA parts {', '.join(sorted(found))}: A and B are needed")
        if bool(config.get("use_dora")) != ("magnitude_vector" in found):
            raise InputError(f"{folder}: {name} and use_dora in {CONFIG} contradict each other: it is damaged")
    updates = {name: (found["A"], found["B"], found.get("magnitude_vector")) for name, found in parts.items()}
    if not updates and not whole:
        raise InputError(f"{folder}: {WEIGHTS} is empty")
    return Lora(folder, config, updates, whole)
