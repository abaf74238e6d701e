"""The ragged forward: rows laid end to end, so that the decoder sees neither padding nor a shared prefix twice.

T tokens of many rows are given as one [1, T] with a layout of segments. A segment is a row, the prefix that several
rows share, or what such a row has of its own; its queries get exactly its own keys: its prefix, then itself, causal
from the lower right. Position ids go on from the prefix. The attention function is installed beneath the model through
transformers' attention registry: a forward that carries a `ragged` layout is served here, every other forward
(evaluation by other libraries) goes to transformers' own sdpa function unchanged. Generation uses the same way in: its
prefill is a ragged forward whose keys and values are kept, its decoding steps bring an attention of their own.

Never a T x T mask: transformers would build one for position ids that restart, so a 1 x 1 x 1 x 1 tensor is handed in
as a prepared 4-D mask, which its mask code returns as it is, and which is not used here. Where a segment has a prefix,
a mask of at most QUERY_BLOCK rows of its queries by its keys is made.

Letters: T tokens of all segments, B rows, L longest row, H query heads, K key-value heads, E head size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "finetune_ragged"

Keep = Callable[[int, Tensor, Tensor], None]
"""(layer, keys [1, K, T, E], values [1, K, T, E]): given what a layer's attention sees, positions rotated in."""

Attend = Callable[[int, Tensor, Tensor, Tensor, float | None], Tensor]
"""(layer, query [1, H, T, E], key and value [1, K, T, E], scaling) -> [1, T, H, E]: the caller's own attention."""
QUERY_BLOCK = 1024
"""Queries that one mask covers: bounds it to 1024 x keys booleans, 16 MiB at 16K keys."""


@dataclass(frozen=True)
class Segment:
    """`length` tokens at `start` of T. prefix: index of the segment that it goes on from, None = it begins a row."""

    start: int
    length: int
    prefix: int | None = None


@dataclass(frozen=True)
class Layout:
    """The segments of T tokens, in order and without gaps; a prefix stands before what uses it and has none itself."""

    segments: tuple[Segment, ...]
    _device_cache: dict[torch.device, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_rows(cls, lengths: Sequence[int]) -> Layout:
        """Rows that share nothing."""
        starts = np.cumsum([0, *lengths])
        return cls(tuple(Segment(int(start), int(n)) for start, n in zip(starts, lengths, strict=False)))

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        return tuple(segment.length for segment in self.segments)

    @cached_property
    def total(self) -> int:
        return sum(self.lengths)

    @cached_property
    def shares(self) -> bool:
        """Whether any segment has a prefix."""
        return any(segment.prefix is not None for segment in self.segments)

    def before(self, segment: Segment) -> int:
        """Tokens of the segment's prefix."""
        return 0 if segment.prefix is None else self.segments[segment.prefix].length

    def positions(self, device: torch.device) -> Tensor:
        """[1, T] position ids: from 0 in every row, going on from the prefix."""
        parts = [torch.arange(self.before(s), self.before(s) + s.length, device=device) for s in self.segments]
        return torch.cat(parts)[None]

    @cached_property
    def masks(self) -> dict[int, list[Tensor]]:
        """For segments with a prefix: boolean masks [queries of a block, keys], causal from the lower right."""
        made: dict[tuple[int, int], list[Tensor]] = {}
        for segment in self.segments:
            if segment.prefix is not None:
                key = (self.before(segment), segment.length)
                made.setdefault(key, _lower_right(*key))
        return {
            index: made[self.before(segment), segment.length]
            for index, segment in enumerate(self.segments)
            if segment.prefix is not None
        }

    def for_flash(self, device: torch.device) -> _Flash:
        """What one variable-length flash call needs, made once for all layers."""
        if device not in self._device_cache:
            ends_q = np.cumsum([0, *self.lengths])
            keys = [self.before(segment) + segment.length for segment in self.segments]
            index = None
            if self.shares:
                parts = []
                for segment in self.segments:
                    if segment.prefix is not None:
                        prefix = self.segments[segment.prefix]
                        parts.append(np.arange(prefix.start, prefix.start + prefix.length))
                    parts.append(np.arange(segment.start, segment.start + segment.length))
                index = torch.from_numpy(np.concatenate(parts)).to(device)
            self._device_cache[device] = _Flash(
                torch.tensor(ends_q, dtype=torch.int32, device=device),
                torch.tensor(np.cumsum([0, *keys]), dtype=torch.int32, device=device),
                max(self.lengths),
                max(keys),
                index,
            )
        found: _Flash = self._device_cache[device]
        return found


@dataclass(frozen=True)
class _Flash:
    """Cumulative lengths of queries and keys [segments + 1], the longest of each, and which of T are the keys."""

    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int
    keys: Tensor | None


@dataclass(frozen=True)
class Laid:
    """Rows in a layout. ids: [T] unique tokens. where: for each row, which of T its tokens are, [its length]."""

    ids: NDArray[np.int64]
    layout: Layout
    where: list[NDArray[np.int64]]


def lay_out(rows: Sequence[NDArray[Any]], groups: Sequence[Sequence[int]]) -> Laid:
    """Lay rows of token ids end to end, each group's common prefix once.

    groups: indices of rows that belong together (the answers to one prompt), each row in exactly one group. A row keeps
    at least one token of its own. Only token ids are compared, so whatever the rows of a group share is found.
    """
    segments: list[Segment] = []
    parts: list[NDArray[Any]] = []
    where: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(rows)
    at = 0

    def add(part: NDArray[Any], prefix: int | None) -> NDArray[np.int64]:
        nonlocal at
        segments.append(Segment(at, len(part), prefix))
        parts.append(part)
        at += len(part)
        return np.arange(at - len(part), at)

    for group in groups:
        shared = common_prefix([rows[index] for index in group]) if len(group) > 1 else 0
        prefix, prefix_where = None, np.empty(0, np.int64)
        if shared:
            prefix = len(segments)
            prefix_where = add(rows[group[0]][:shared], None)
        for index in group:
            where[index] = np.concatenate([prefix_where, add(rows[index][shared:], prefix)])
    return Laid(np.concatenate(parts).astype(np.int64), Layout(tuple(segments)), where)


def common_prefix(rows: Sequence[NDArray[Any]]) -> int:
    """How many leading tokens all rows share, so that every row keeps one of its own at least."""
    shortest = min(len(row) for row in rows) - 1
    first = rows[0][:shortest]
    same = np.ones(max(shortest, 0), dtype=bool)
    for row in rows[1:]:
        same &= row[:shortest] == first
    return int(same.argmin()) if not same.all() else max(shortest, 0)


def ragged_attention(
    module: nn.Module,
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    ragged: Layout | None = None,
    keep: Keep | None = None,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention; returns [1, T, H, E].

    With a layout: ragged, and `keep` is given the keys and values. With `attend`: that. Else: transformers' sdpa.
    """
    if attend is not None:
        return attend(module.layer_idx, query_1HTE, key_1KTE, value_1KTE, scaling), None
    if keep is not None:
        keep(module.layer_idx, key_1KTE, value_1KTE)
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
    if query_1HTE.is_cuda and dropout == 0.0 and (narrow := _narrow(query_1HTE)) is not None:
        return _varlen_flash(query_1HTE, key_1KTE, value_1KTE, ragged, scaling, grouped, narrow), None
    if grouped:  # repeated once for all rows: on a CPU that is cheaper than sdpa's own grouping, row by row
        groups = query_1HTE.shape[1] // key_1KTE.shape[1]
        key_1KTE = key_1KTE.repeat_interleave(groups, dim=1)
        value_1KTE = value_1KTE.repeat_interleave(groups, dim=1)
    # split, not slices: its backward is one concatenation, while every slice's would fill a T-long tensor of zeros.
    queries, keys, values = (x.split(ragged.lengths, dim=2) for x in (query_1HTE, key_1KTE, value_1KTE))
    outputs = []
    for index, segment in enumerate(ragged.segments):
        q, k, v = queries[index], keys[index], values[index]
        if segment.prefix is None:
            causal = segment.length > 1
            outputs.append(scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout, scale=scaling))
            continue
        k = torch.cat((keys[segment.prefix], k), dim=2)
        v = torch.cat((values[segment.prefix], v), dim=2)
        for block, mask in zip(q.split(QUERY_BLOCK, dim=2), ragged.masks[index], strict=True):
            seen, mask = mask.shape[1], mask.to(q.device)
            outputs.append(
                scaled_dot_product_attention(
                    block, k[:, :, :seen], v[:, :, :seen], attn_mask=mask, dropout_p=dropout, scale=scaling
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _lower_right(before: int, length: int) -> list[Tensor]:
    """Masks of a segment's queries, block by block: query t sees the prefix and its own tokens up to t."""
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        blocks.append(torch.ones(end - start, before + end, dtype=torch.bool).tril(before + start))
    return blocks


def _narrow(query: Tensor) -> torch.dtype | None:
    """The 16-bit type that flash attention can work in here: the query's own, or autocast's; None for float32."""
    if query.dtype in (torch.bfloat16, torch.float16):
        return query.dtype
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None


def _varlen_flash(
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    ragged: Layout,
    scaling: float | None,
    grouped: bool,
    kind: torch.dtype,
) -> Tensor:
    """One variable-length flash call for all segments (torch.nn.attention.varlen; 16-bit types, no dropout)."""
    from torch.nn.attention.varlen import varlen_attn

    plan = ragged.for_flash(query_1HTE.device)
    query_THE, key_TKE, value_TKE = (x[0].transpose(0, 1).to(kind) for x in (query_1HTE, key_1KTE, value_1KTE))
    if plan.keys is not None:
        key_TKE, value_TKE = key_TKE.index_select(0, plan.keys), value_TKE.index_select(0, plan.keys)
    output_THE = varlen_attn(
        query_THE,
        key_TKE,
        value_TKE,
        plan.ends_q,
        plan.ends_k,
        plan.longest_q,
        plan.longest_k,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=grouped,
    )
    return output_THE.to(query_1HTE.dtype)[None]


def install(model: nn.Module) -> None:
    """Let a transformers model take ragged layouts. Its ordinary forwards stay what they were (sdpa)."""
    AttentionInterface.register(NAME, ragged_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def ragged_hidden(decoder: nn.Module, ids_T: Tensor, layout: Layout, keep: Keep | None = None) -> Tensor:
    """Final hidden states [T, D], each row seeing itself alone.

    decoder: the transformer stack without its head (`model.model`), installed with `install`. ids_T: [T] int64. keep:
    given every layer's keys and values.
    """
    if layout.total != len(ids_T):
        raise ValueError(f"the layout has {layout.total} tokens, but there are {len(ids_T)}")
    output = decoder(
        input_ids=ids_T[None],
        attention_mask=ids_T.new_zeros(1, 1, 1, 1, dtype=torch.bool),
        position_ids=layout.positions(ids_T.device),
        use_cache=False,
        ragged=layout,
        keep=keep,
    )
    return output.last_hidden_state[0]


def step_hidden(decoder: nn.Module, ids_R: Tensor, positions_R: Tensor, attend: Attend) -> Tensor:
    """Final hidden states [R, D] of one token for each of R rows, with the given attention."""
    output = decoder(
        input_ids=ids_R[None],
        attention_mask=ids_R.new_zeros(1, 1, 1, 1, dtype=torch.bool),
        position_ids=positions_R[None],
        use_cache=False,
        attend=attend,
    )
    return output.last_hidden_state[0]


def padded_hidden(decoder: nn.Module, ids_T: Tensor, layout: Layout) -> Tensor:
    """The same [T, D] by way of the classic rectangle [B, L], padded on the right and masked by position.

    For layouts without shared prefixes: the classic way computes each row whole.
    """
    if layout.shares:
        raise ValueError("the padded forward takes whole rows: lay them out without sharing")
    lengths = torch.tensor(layout.lengths, device=ids_T.device)
    keep_BL = torch.arange(max(layout.lengths), device=ids_T.device)[None] < lengths[:, None]
    ids_BL = ids_T.new_zeros(keep_BL.shape)  # any id serves as padding: it is masked by position, never by value
    ids_BL[keep_BL] = ids_T
    hidden_BLD = decoder(input_ids=ids_BL, attention_mask=keep_BL.long(), use_cache=False).last_hidden_state
    return hidden_BLD[keep_BL]
