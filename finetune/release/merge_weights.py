"""What each tensor of a merged model is: the base's value in the chosen precision, changed by the adapters.

`into` says which base: `original`, the checkpoint as it is, or `dequantised`, the values that an nf4 base really had
while the adapter was trained on it. Everything is computed in float32, tensor by tensor, and rounded once, to the dtype
that the tensor has in the base's checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from finetune.errors import InputError, ProofError
from finetune.release import combine
from finetune.release.lora import HEAD, Lora, Update
from finetune.release.tensors import Entry, Place, checkpoint_files, read_places

Method = Literal["linear", "cat", "svd", "ties", "dare", "slerp"]
Into = Literal["original", "dequantised"]

EMBED, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
_QUANTISED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
"""What transformers loads in 4 bits: every linear layer but the head."""
_COMPUTED = "rotary_emb.inv_freq"
"""Carried by checkpoints of older versions; computed from the config today."""
_FINITE_CHUNK = 2**20
"""Values looked at together: small temporaries, which do not break up the heap."""


@dataclass(frozen=True)
class How:
    """method, weights (one an adapter), density (ties, dare), rank (svd), seed (dare): how several become one.

    compute, device: the dtype and place of the run's own 4-bit base, for `dequantised`.
    """

    into: Into
    method: Method
    weights: tuple[float, ...]
    density: float
    rank: int | None
    seed: int
    compute: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Merging:
    """base: places of the base's tensors. tied: the head is the embedding. files: what is to be written, by file."""

    base: Mapping[str, Place]
    loras: tuple[Lora, ...]
    how: How
    tied: bool
    files: Mapping[str, Sequence[Entry]]
    is_reward: bool

    @property
    def entries(self) -> dict[str, Entry]:
        return {entry.name: entry for entries in self.files.values() for entry in entries}

    def with_into(self, into: Into) -> Merging:
        """The same merge into the other base."""
        how = How(**{**vars(self.how), "into": into})
        return Merging(self.base, self.loras, how, self.tied, self.files, self.is_reward)

    def rounded(self, entry: Entry) -> Tensor:
        """The tensor as it is written. Raises ProofError where a value is not finite."""
        if entry.name in self.base and not self.changers(entry.name) and self.how.into == "original":
            tensor = self.base[entry.name].read()  # as it is, without a float32 copy
        else:
            tensor = self.value(entry.name).to(entry.dtype)
        check_finite(entry.name, tensor)
        return tensor

    def changers(self, name: str) -> list[tuple[Lora, float]]:
        return [(lora, w) for lora, w in zip(self.loras, self.how.weights, strict=True) if name in lora.names]

    def base_value(self, name: str) -> Tensor:
        """The base's own value, float32, as `into` says."""
        place = self.base.get(name) or self.base[EMBED]  # the head of a tied base
        weight = place.read()
        if self.how.into == "original":
            return weight.float()
        if _QUANTISED.fullmatch(name):
            return dequantised(weight, self.how.compute, self.how.device).float()
        return weight.to(self.how.compute).float()

    def value(self, name: str) -> Tensor:
        """The merged tensor, float32, before rounding."""
        changers = self.changers(name)
        if name == HEAD and name not in self.base:
            return combine.linear([lora.whole[HEAD].read().float() for lora, _ in changers], [w for _, w in changers])
        weight = self.base_value(name)
        if not changers:
            return weight
        if len(self.loras) == 1 and self.how.weights == (1.0,):
            lora = self.loras[0]
            return lora.whole[name].read().float() if name in lora.whole else lora.update(name).apply(weight)
        return self._several(name, weight, changers)

    def _several(self, name: str, weight: Tensor, changers: Sequence[tuple[Lora, float]]) -> Tensor:
        method, weights = self.how.method, [w for _, w in changers]
        if method == "slerp":
            ends = [_end(lora, name, weight) for lora in self.loras]
            first, second = self.how.weights
            return combine.slerp(ends[0], ends[1], second / (first + second))
        if method == "svd" and not any(name in lora.whole for lora, _ in changers):
            updates: list[Update] = [lora.update(name) for lora, _ in changers]
            rank = self.how.rank or max(update.a_RI.shape[0] for update in updates)
            return weight + combine.nearest_of_rank(updates, weights, rank)[0]
        changes = [_change(lora, name, weight) for lora, _ in changers]
        if method == "ties":
            return weight + combine.ties(changes, weights, self.how.density)
        if method == "dare":
            return weight + combine.dare(changes, weights, self.how.density, f"{self.how.seed}\0{name}")
        return weight + combine.linear(changes, weights)


def plan_merge(folder: Path, config: Mapping[str, Any], loras: Sequence[Lora], how: How) -> Merging:
    """Which tensors go into which file. folder, config: the base. Raises InputError where an adapter does not fit.

    Of two merged models (`as_change`) the first is the base, and the second a change of all its tensors.
    """
    found = {path.name: read_places(path) for path in checkpoint_files(folder)}
    base = {name: place for places in found.values() for name, place in places.items()}
    tied = bool(config.get("tie_word_embeddings", False))
    is_reward = loras[0].is_reward
    models = all(lora.is_model for lora in loras)
    untied = tied and not is_reward and not models and _needs_own_head(loras)
    for lora in loras:
        _check_fits(lora, base, tied)
    left_out = {name for name in base if name.endswith(_COMPUTED)}
    if is_reward or (tied and not untied):
        left_out.add(LM_HEAD)
    files: dict[str, list[Entry]] = {}
    for file, places in found.items():
        kept = sorted((place.start, name) for name, place in places.items() if name not in left_out)
        files[file] = [Entry(name, base[name].dtype, base[name].shape) for _, name in kept]
    last = files[list(files)[-1]]
    if untied and LM_HEAD not in base:
        last.append(Entry(LM_HEAD, base[EMBED].dtype, base[EMBED].shape))
    if is_reward:
        last.append(Entry(HEAD, torch.float32, loras[0].whole[HEAD].shape))
    return Merging(base, tuple(loras), how, tied and not untied, {file: e for file, e in files.items() if e}, is_reward)


def dequantised(weight_OI: Tensor, compute: torch.dtype, device: torch.device) -> Tensor:
    """[O, I] in `compute`: the values of a linear layer loaded in nf4, bit for bit (double quantised, blocks of 64)."""
    from bitsandbytes import functional

    # transformers casts to the compute dtype first and quantises that.
    held = weight_OI.to(device=device, dtype=compute).contiguous()
    packed, state = functional.quantize_4bit(held, quant_type="nf4", compress_statistics=True, blocksize=64)
    values: Tensor = functional.dequantize_4bit(packed, state)
    return values.cpu()


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises ProofError. In pieces: a mask of a whole embedding would be another gigabyte."""
    if tensor.is_floating_point():
        for piece in tensor.reshape(-1).split(_FINITE_CHUNK):
            if not torch.isfinite(piece).all():
                raise ProofError(
                    f"{name} of the merged model has values that are not finite in {str(tensor.dtype)[6:]}: the "
                    "adapter or the base is damaged, or its change is too large for that dtype; nothing was written"
                )


def _change(lora: Lora, name: str, weight: Tensor) -> Tensor:
    """What one adapter alone adds to a tensor."""
    if name in lora.whole:
        return lora.whole[name].read().float() - weight
    update = lora.update(name)
    return update.delta() if update.lengths_O is None else update.apply(weight) - weight


def _end(lora: Lora, name: str, weight: Tensor) -> Tensor:
    """The tensor that one adapter alone makes of the base's."""
    if name in lora.whole:
        return lora.whole[name].read().float()
    return lora.update(name).apply(weight) if name in lora.updates else weight


def _needs_own_head(loras: Sequence[Lora]) -> bool:
    """Of a tied base: whether embedding and head have become two. Both trained and bit-equal stay one."""
    if not any({EMBED, LM_HEAD} & lora.names for lora in loras):
        return False
    return not all(
        EMBED in lora.whole
        and LM_HEAD in lora.whole
        and torch.equal(lora.whole[EMBED].read(), lora.whole[LM_HEAD].read())
        for lora in loras
    )


def _check_fits(lora: Lora, base: Mapping[str, Place], tied: bool) -> None:
    for name in sorted(lora.names - {HEAD}):
        place = base.get(name) or (base.get(EMBED) if tied and name == LM_HEAD else None)
        if place is None:
            raise InputError(f"{lora.folder}: the adapter changes {name}, which the base does not have")
        if name in lora.whole:
            shape = lora.whole[name].shape
        else:
            a, b, _ = lora.updates[name]
            shape = (b.shape[0], a.shape[1])
        if shape != place.shape:
            raise InputError(
                f"{lora.folder}: the adapter changes {name} of shape {list(shape)}, in the base it has "
                f"{list(place.shape)}: it was trained on another base, or is damaged"
            )
    if HEAD in lora.whole and lora.whole[HEAD].shape != (1, base[EMBED].shape[1]):
        raise InputError(f"{lora.folder}: its reward head has the shape {list(lora.whole[HEAD].shape)}: it is damaged")
