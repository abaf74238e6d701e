"""Keys and values of answers being written, and the attention of one decoding step on them.

Every row is one answer. Its keys are in two stores: those of its prompt, held once for all answers to that prompt, and
those of its own suffix. Queries of one prompt's rows stand together, so that their scores on the prompt are one product
[G, K, M·n, E] x [G, K, E, P] and no copy of the prompt's keys is made, neither for rows nor for grouped heads. Each
store gives a softmax of its own with its largest score and its total, by which the two are joined to exactly the
softmax over both. The softmax is float32.

Rows and prompts stand in any order: what leaves is overwritten by what stands last, so leaving costs one row's copy.

Letters: R rows (answers), G prompts in use, M most rows of a prompt, P longest prompt, S longest suffix, H query heads,
K key-value heads, n = H / K, E head size, T tokens of a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 64
"""Tokens by which the stores grow: with max_new_tokens at once, short answers would pay for the longest one allowed."""


class Decoding:
    """The stores of all layers, who stands where, and `attend`, which a decoding step hands to the decoder."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.prompt_lengths = np.empty(0, np.int64)  # [G]
        self.row_prompts = np.empty(0, np.int64)  # [R] slot of its prompt
        self.row_lengths = np.empty(0, np.int64)  # [R] suffix tokens stored
        self._prompts: list[tuple[Tensor, Tensor]] = []  # layer: keys, values [slots, K, room, E]
        self._suffixes: list[tuple[Tensor, Tensor]] = []
        self._coming: list[NDArray[np.int64]] = []

    # Prompts

    def expect(self, where: Sequence[NDArray[np.int64]]) -> list[int]:
        """New prompts, whose tokens stand at `where` of the prefill that comes next. Returns their slots."""
        first = len(self.prompt_lengths)
        self._coming = [torch.from_numpy(index).to(self.device) for index in where]
        self.prompt_lengths = np.append(self.prompt_lengths, [len(index) for index in where])
        return list(range(first, len(self.prompt_lengths)))

    def keep(self, layer: int, key_1KTE: Tensor, value_1KTE: Tensor) -> None:
        """Take the expected prompts' keys and values from a layer of the prefill."""
        slots, room = len(self.prompt_lengths), int(self.prompt_lengths.max())
        if layer == len(self._prompts):
            self._prompts.append((_none(key_1KTE), _none(value_1KTE)))
        stores = tuple(_grown(store, slots, room) for store in self._prompts[layer])
        self._prompts[layer] = stores[0], stores[1]
        first = slots - len(self._coming)
        for store, new_1KTE in zip(stores, (key_1KTE, value_1KTE), strict=True):
            for slot, index in enumerate(self._coming, first):
                store[slot, :, : len(index)] = new_1KTE[0].index_select(1, index).to(store.dtype)

    def drop_prompt(self, slot: int) -> int:
        """Let a prompt that no row uses go. Returns the slot whose prompt stands at `slot` from now on."""
        last = len(self.prompt_lengths) - 1
        if slot != last:
            length = self.prompt_lengths[slot] = self.prompt_lengths[last]
            for stores in self._prompts:
                for store in stores:
                    store[slot, :, :length] = store[last, :, :length]
            self.row_prompts[self.row_prompts == last] = slot
        self.prompt_lengths = self.prompt_lengths[:last]
        return last

    # Rows

    def add_rows(self, slots: Sequence[int]) -> None:
        """New rows with nothing written yet, at the end; slots: of their prompts."""
        self.row_prompts = np.append(self.row_prompts, np.asarray(slots, np.int64))
        self.row_lengths = np.append(self.row_lengths, np.zeros(len(slots), np.int64))

    def drop_rows(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Let rows go. Returns, for each row that stays, where it stood before: rows from the end fill the holes."""
        count = len(self.row_lengths)
        stay = np.ones(count, bool)
        stay[list(rows)] = False
        kept = int(stay.sum())
        holes = np.flatnonzero(~stay[:kept])
        movers = kept + np.flatnonzero(stay[kept:])
        before = np.arange(kept)
        before[holes] = movers
        if len(holes):
            longest = int(self.row_lengths[movers].max())
            to, source = (torch.from_numpy(index).to(self.device) for index in (holes, movers))
            for stores in self._suffixes:
                for store in stores:
                    store[to, :, :longest] = store[source, :, :longest]
        self.row_prompts, self.row_lengths = self.row_prompts[before], self.row_lengths[before]
        return before

    # A step

    def begin_step(self) -> Tensor:
        """Make room for one more token in each row. Returns its position ids [R].

        Everything that depends on who stands where is made here once, for all layers.
        """
        prompts, rows = len(self.prompt_lengths), len(self.row_lengths)
        order = np.argsort(self.row_prompts, kind="stable")
        counts = np.bincount(self.row_prompts, minlength=prompts)
        place = np.empty(rows, np.int64)  # of a row among its prompt's rows
        place[order] = np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts)
        self._most = int(counts.max())
        cells = self.row_prompts * self._most + place
        slots = np.zeros(prompts * self._most, np.int64)  # a cell without a row repeats row 0, and is not read
        slots[cells] = np.arange(rows)
        self._longest_prompt = int(self.prompt_lengths.max())
        self._longest = int(self.row_lengths.max()) + 1
        host = np.concatenate([slots, cells, self.row_lengths, self.row_prompts, self.prompt_lengths])
        numbers = torch.from_numpy(host).to(self.device)
        self._slots, self._cells, self._at, prompt_of_row, lengths = numbers.split(
            [len(slots), rows, rows, rows, prompts]
        )
        self._rows = torch.arange(rows, device=self.device)
        self._prompt_bias = _bias(lengths, self._longest_prompt)
        self._bias = _bias(self._at + 1, self._longest)
        self.row_lengths += 1
        return lengths[prompt_of_row] + self._at

    def attend(
        self, layer: int, query_1HRE: Tensor, key_1KRE: Tensor, value_1KRE: Tensor, scaling: float | None
    ) -> Tensor:
        """Store each row's new key and value and attend to its prompt and its suffix; returns [1, R, H, E]."""
        rows, heads, grouped = query_1HRE.shape[2], key_1KRE.shape[1], query_1HRE.shape[1] // key_1KRE.shape[1]
        size = query_1HRE.shape[3]
        if layer == len(self._suffixes):
            self._suffixes.append((_none(key_1KRE), _none(value_1KRE)))
        keys, values = (_grown(store, rows, self._longest, BLOCK) for store in self._suffixes[layer])
        self._suffixes[layer] = keys, values
        keys[self._rows, :, self._at] = key_1KRE[0].transpose(0, 1).to(keys.dtype)
        values[self._rows, :, self._at] = value_1KRE[0].transpose(0, 1).to(values.dtype)
        query_RKnE = (
            (query_1HRE[0] * (scaling or size**-0.5)).transpose(0, 1).reshape(rows, heads, grouped, size).to(keys.dtype)
        )

        end = self._longest
        out_RKnE, top_RKn, total_RKn = _softmax(query_RKnE, keys[:rows, :, :end], values[:rows, :, :end], self._bias)

        prompts, most = len(self.prompt_lengths), self._most
        query_GKmE = query_RKnE.index_select(0, self._slots).view(prompts, most, heads, grouped, size).transpose(1, 2)
        query_GKmE = query_GKmE.reshape(prompts, heads, most * grouped, size)
        end = self._longest_prompt
        keys, values = self._prompts[layer]
        found = _softmax(query_GKmE, keys[:prompts, :, :end], values[:prompts, :, :end], self._prompt_bias)
        first_RKnE, first_top_RKn, first_total_RKn = (self._by_row(x, grouped) for x in found)

        both_RKn = torch.maximum(top_RKn, first_top_RKn)
        weight_RKn, first_weight_RKn = (top_RKn - both_RKn).exp(), (first_top_RKn - both_RKn).exp()
        sum_RKnE = out_RKnE * weight_RKn[..., None] + first_RKnE * first_weight_RKn[..., None]
        total_RKn = total_RKn * weight_RKn + first_total_RKn * first_weight_RKn
        joined_RKnE = sum_RKnE / total_RKn[..., None]
        return joined_RKnE.reshape(1, rows, heads * grouped, size).to(query_1HRE.dtype)

    def _by_row(self, grouped_GKm: Tensor, each: int) -> Tensor:
        """[G, K, M·n, ...] -> [R, K, n, ...]."""
        prompts, heads, _, *rest = grouped_GKm.shape
        cells = grouped_GKm.view(prompts, heads, self._most, each, *rest).transpose(1, 2)
        return cells.reshape(prompts * self._most, heads, each, *rest).index_select(0, self._cells)


def _softmax(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries [B, K, Q, E] on keys [B, K, L, E], with bias [B, 1, 1, L] added to the scores: values weighted by
    exp(score - largest) [B, K, Q, E], the largest score and the total weight [B, K, Q]; float32."""
    scores = (query @ keys.transpose(2, 3)).float().add_(bias)
    top = scores.amax(-1)
    weights = scores.sub_(top[..., None]).exp_()
    return (weights.to(values.dtype) @ values).float(), top, weights.sum(-1)


def _bias(lengths: Tensor, longest: int) -> Tensor:
    """[B, 1, 1, longest] float32: 0 for the first `lengths` keys, else minus infinity."""
    outside = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return outside.new_zeros(outside.shape, dtype=torch.float32).masked_fill_(outside, -torch.inf)[:, None, None]


def _none(like_1KTE: Tensor) -> Tensor:
    """A store without room, in the type that the step's products are computed in: autocast's where it is on."""
    kind = like_1KTE.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like_1KTE.dtype
    return like_1KTE.new_empty((0, like_1KTE.shape[1], 0, like_1KTE.shape[3]), dtype=dtype)


def _grown(store: Tensor, slots: int, room: int, block: int = 1) -> Tensor:
    """The store itself where it has that room, else a new one with what the first `room` places of it hold.

    Unused places are 0, never garbage: a weight of 0 times infinity would not be 0. Longest prompts come first, so a
    new store of prompts often has less room than the last.
    """
    if slots <= store.shape[0] and room <= store.shape[2]:
        return store
    slots, room = max(slots, store.shape[0]), -(-room // block) * block
    new = store.new_zeros((slots, store.shape[1], room, store.shape[3]))
    new[: store.shape[0], :, : store.shape[2]] = store[:, :, :room]
    return new
