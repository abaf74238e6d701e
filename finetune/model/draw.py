"""The next token of every row from its logits, and the random numbers that decide it.

One uniform number for each (seed, key, sample, position): the token is where the cumulative distribution, in the order
of the vocabulary, passes it. So a row's draw depends on nothing that stands beside it.

Letters: R rows, V words of the vocabulary, b blocks of words, C words looked at.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 128
"""Words that are summed together before the cumulative sum."""
FIRST = 256
"""The most probable words that are sorted at first to find top_p's set; more only where these do not reach it."""


def uniforms(seed: int, key: int, sample: int, count: int) -> NDArray[np.float64]:
    """[count] numbers in [0, 1), one a position: the first ones are the same for any count."""
    digest = hashlib.blake2b(struct.pack("<qQQ", seed, key, sample), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def draw(
    logits_RV: Tensor, temperatures_R: Tensor, uniforms_R: Tensor, top_k: int = 0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """[R] int64 tokens, and [R] their log-probabilities at temperature 1 among all words.

    logits_RV: float32. temperatures_R: float32, 0 = the most probable word. uniforms_R: float64 in [0, 1).
    top_k > 0 leaves the k most probable words, then top_p < 1 the fewest most probable ones that reach that share, as
    in transformers; words that tie with the last one left stay too.
    """
    top_R, best_R = logits_RV.max(1)
    logits_RV = logits_RV - top_R[:, None]
    odds_RV = logits_RV.exp()  # softmax, not divided yet: at most 1
    total_R = odds_RV.sum(1)
    greedy_R = temperatures_R == 0
    if top_k or top_p < 1 or not bool((temperatures_R == 1).all()):
        scores_RV = logits_RV / temperatures_R.masked_fill(greedy_R, 1.0)[:, None]
        odds_RV = keep_top(scores_RV, top_k, top_p).exp_()
    tokens_R = torch.where(greedy_R, best_R, pick(odds_RV, uniforms_R))
    return tokens_R, logits_RV.gather(1, tokens_R[:, None])[:, 0] - total_R.log()


def pick(odds_RV: Tensor, uniforms_R: Tensor) -> Tensor:
    """[R] the words where the cumulative sum of odds passes that share of its total; never one without odds.

    The sum is taken over blocks of words at first and then inside the block that it points to: a float64 cumulative sum
    over a whole vocabulary would cost more than the softmax.
    """
    words = odds_RV.shape[1]
    whole = words // BLOCK * BLOCK
    sums_Rb = odds_RV[:, :whole].unflatten(1, (-1, BLOCK)).sum(2)
    if whole < words:
        sums_Rb = torch.cat([sums_Rb, odds_RV[:, whole:].sum(1, keepdim=True)], 1)
    ends_Rb = sums_Rb.cumsum(1, dtype=torch.float64)
    aim_R1 = _within(uniforms_R[:, None] * ends_Rb[:, -1:], ends_Rb)
    block_R1 = torch.searchsorted(ends_Rb, aim_R1, right=True)
    before_R1 = torch.where(block_R1 > 0, ends_Rb.gather(1, (block_R1 - 1).clamp_min(0)), 0.0)
    words_RC = block_R1 * BLOCK + torch.arange(BLOCK, device=odds_RV.device)
    inside_RC = odds_RV.gather(1, words_RC.clamp_max(words - 1)).masked_fill(words_RC >= words, 0.0)
    sums_RC = inside_RC.cumsum(1, dtype=torch.float64)
    place_R1 = torch.searchsorted(sums_RC, _within(aim_R1 - before_R1, sums_RC), right=True)
    return (block_R1 * BLOCK + place_R1)[:, 0].clamp_max(words - 1)  # beyond only where odds are not numbers


def _within(aim_R1: Tensor, sums_RC: Tensor) -> Tensor:
    """The aim, from 0 to just below the total, which rounding may have taken it past."""
    total_R1 = sums_RC[:, -1:]
    return torch.minimum(aim_R1.clamp_min(0), torch.nextafter(total_R1, torch.zeros_like(total_R1)))


def keep_top(scores_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Scores with minus infinity for every word outside top_k (0 = off), and then top_p (1 = off)."""
    words = scores_RV.shape[1]
    if 0 < top_k < words:
        least_R1 = scores_RV.topk(top_k, dim=1).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < least_R1, -torch.inf)
    if top_p < 1:
        total_R1 = scores_RV.double().logsumexp(1, keepdim=True)
        count = min(FIRST, words)
        while True:
            top_RC = scores_RV.topk(count, dim=1).values
            share_RC = (top_RC.double() - total_R1).exp()
            before_RC = share_RC.cumsum(1) - share_RC
            if count == words or bool(((before_RC + share_RC)[:, -1] >= top_p).all()):
                break
            count = min(8 * count, words)
        last_R1 = ((before_RC < top_p) & (top_RC > -torch.inf)).sum(1, keepdim=True).clamp_min(1) - 1
        scores_RV = scores_RV.masked_fill(scores_RV < top_RC.gather(1, last_R1), -torch.inf)
    return scores_RV
