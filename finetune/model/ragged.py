"""The ragged forward: rows of different lengths laid end to end, so that the decoder never sees padding.

Rows are given as T tokens [T] with their lengths; the decoder runs once on [1, T] with position ids that restart at
every row, and the attention function below gives each row's queries exactly that row's keys. It is installed beneath
the model through transformers' attention registry: a forward that carries a `ragged` layout is served here, every other
forward (generation, evaluation by other libraries) goes to transformers' own sdpa function unchanged.

Never a T x T mask: transformers would build one for position ids that restart, so a 1 x 1 x 1 x 1 tensor is handed in
as a prepared 4-D mask, which its mask code returns as it is, and which is not used here.

Letters: T tokens of all rows, B rows, L longest row, H query heads, K key-value heads, E head size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "finetune_ragged"


@dataclass(frozen=True)
class Layout:
    """Where each row stands in the T tokens: `lengths` in tokens, in order, without gaps."""

    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def starts(self) -> list[int]:
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return starts

    def positions(self, device: torch.device) -> Tensor:
        """[1, T] position ids, from 0 in every row."""
        return torch.cat([torch.arange(length, device=device) for length in self.lengths])[None]

    @cached_property
    def boundaries(self) -> list[int]:
        """[B + 1] cumulative lengths, as variable-length attention wants them."""
        return [*self.starts, self.total]


def ragged_attention(
    module: nn.Module,
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    ragged: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention; returns [1, T, H, E]. Without a layout: transformers' sdpa."""
    if ragged is None:
        return sdpa_attention_forward(
            module,
            query_1HTE,
            key_1KTE,
            value_1KTE,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **kwargs,
        )
    grouped = query_1HTE.shape[1] != key_1KTE.shape[1]
    if query_1HTE.is_cuda:
        return _varlen_flash(query_1HTE, key_1KTE, value_1KTE, ragged, scaling, grouped), None
    if grouped:  # repeated once for all rows: on a CPU that is cheaper than sdpa's own grouping, row by row
        groups = query_1HTE.shape[1] // key_1KTE.shape[1]
        key_1KTE = key_1KTE.repeat_interleave(groups, dim=1)
        value_1KTE = value_1KTE.repeat_interleave(groups, dim=1)
    # split, not slices: its backward is one concatenation, while every slice's would fill a T-long tensor of zeros.
    rows = zip(*(x.split(ragged.lengths, dim=2) for x in (query_1HTE, key_1KTE, value_1KTE)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1, dropout_p=dropout, scale=scaling)
        for q, k, v in rows
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _varlen_flash(
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    ragged: Layout,
    scaling: float | None,
    grouped: bool,
) -> Tensor:
    """One variable-length flash call for all rows (torch.nn.attention.varlen; 16-bit types, no dropout)."""
    from torch.nn.attention.varlen import varlen_attn

    boundaries = torch.tensor(ragged.boundaries, dtype=torch.int32, device=query_1HTE.device)
    longest = max(ragged.lengths)
    kind = query_1HTE.dtype if query_1HTE.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    output_THE = varlen_attn(
        *(x[0].transpose(0, 1).to(kind) for x in (query_1HTE, key_1KTE, value_1KTE)),
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=grouped,
    )
    return output_THE.to(query_1HTE.dtype)[None]


def install(model: nn.Module) -> None:
    """Let a transformers model take ragged layouts. Its ordinary forwards stay what they were (sdpa)."""
    AttentionInterface.register(NAME, ragged_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]  # every PreTrainedModel has it


def ragged_hidden(decoder: nn.Module, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """Final hidden states [T, D] of rows laid end to end, each seeing itself alone.

    decoder: the transformer stack without its head (`model.model`), installed with `install`. ids_T: [T] int64.
    """
    layout = Layout(tuple(lengths))
    if layout.total != len(ids_T):
        raise ValueError(f"lengths sum to {layout.total}, but there are {len(ids_T)} tokens")
    output = decoder(
        input_ids=ids_T[None],
        attention_mask=ids_T.new_zeros(1, 1, 1, 1, dtype=torch.bool),
        position_ids=layout.positions(ids_T.device),
        use_cache=False,
        ragged=layout,
    )
    return output.last_hidden_state[0]


def padded_hidden(decoder: nn.Module, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same [T, D] by way of the classic rectangle [B, L], padded on the right and masked by position."""
    longest = max(lengths)
    keep_BL = torch.arange(longest, device=ids_T.device)[None] < torch.tensor(lengths, device=ids_T.device)[:, None]
    ids_BL = ids_T.new_zeros(keep_BL.shape)  # any id serves as padding: it is masked by position, never by value
    ids_BL[keep_BL] = ids_T
    hidden_BLD = decoder(input_ids=ids_BL, attention_mask=keep_BL.long(), use_cache=False).last_hidden_state
    return hidden_BLD[keep_BL]
