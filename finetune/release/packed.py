"""4-bit weights as AWQ and GPTQ checkpoints hold them, unpacked without the libraries that wrote them.

Both keep eight 4-bit numbers q in an int32, a 16-bit scale s and a 4-bit zero point z for each group of G inputs, and
mean w = (q - z) s. Legend: I inputs, O outputs, N = I / G groups.

AWQ (AutoAWQ's "gemm"): qweight [I, O/8], qzeros [N, O/8], scales [N, O]; of eight outputs, 0 to 7, the lowest four
bits hold output 0, then 2, 4, 6, 1, 3, 5, 7.
GPTQ (AutoGPTQ's first version): qweight [I/8, O], the lowest bits first; qzeros [N, O/8] hold z - 1; scales [N, O];
g_idx [I] names each input's group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.errors import ProofError

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Unpacked:
    """A layer's weights in float32, and the step between neighbouring ones."""

    weight_OI: Tensor
    step_OI: Tensor


def unpack(parts: Mapping[str, Tensor], form: str, group: int) -> Unpacked:
    """The weights that a layer's packed tensors stand for. form: "awq" or "gptq". Raises ProofError on odd shapes."""
    qweight, qzeros, scales_NO = parts["qweight"], parts["qzeros"], parts["scales"].float()
    if form == "awq":
        q_IO, z_NO = _nibbles(qweight)[..., _columns()].flatten(1), _nibbles(qzeros)[..., _columns()].flatten(1)
    else:
        q_IO = _nibbles(qweight).permute(0, 2, 1).flatten(0, 1)
        z_NO = _nibbles(qzeros).flatten(1) + 1
    group_I = parts["g_idx"].long() if "g_idx" in parts else torch.arange(q_IO.shape[0]) // group
    if z_NO.shape != scales_NO.shape or q_IO.shape[1] != scales_NO.shape[1] or len(group_I) != q_IO.shape[0]:
        raise ProofError(f"packed shapes do not fit together: { ({k: tuple(v.shape) for k, v in parts.items()}) }")
    if not 0 <= int(group_I.min()) <= int(group_I.max()) < len(scales_NO):
        raise ProofError(f"inputs of groups {int(group_I.min())} to {int(group_I.max())}, scales for {len(scales_NO)}")
    step_IO = scales_NO[group_I]
    return Unpacked(((q_IO - z_NO[group_I]) * step_IO).T.contiguous(), step_IO.T.abs().contiguous())


def _nibbles(packed: Tensor) -> Tensor:
    """[..., 8] numbers from 0 to 15 of each int32, the lowest bits first."""
    return (packed[..., None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15


def _columns() -> list[int]:
    """Where each of eight outputs lies."""
    return [_AWQ_ORDER.index(output) for output in range(8)]
