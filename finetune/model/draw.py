"""The next token of every row from its logits, and the random numbers that decide it.

One uniform number for each (seed, key, sample, position): the token is where the cumulative distribution, in the order
of the vocabulary, passes it. So a row's draw depends on nothing that stands beside it.

Letters: R rows, V words of the vocabulary.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST = 256
"""The most probable words that are sorted at first to find top_p's set; more only where these do not reach it."""


def uniforms(seed: int, key: int, sample: int, count: int) -> NDArray[np.float64]:
    """[count] numbers in [0, 1), one a position: the first ones are the same for any count."""
    digest = hashlib.blake2b(struct.pack("<qQQ", seed, key, sample), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def draw(logits_RV: Tensor, temperatures_R: Tensor, uniforms_R: Tensor, top_k: int, top_p: float) -> Tensor:
    """[R] int64 tokens. temperatures_R: float32, 0 = the most probable one. uniforms_R: float64.

    top_k > 0 leaves the k most probable words, then top_p < 1 the fewest most probable ones that reach that share, as
    in transformers; words that tie with the last one left stay too.
    """
    greedy_R = temperatures_R == 0
    tokens_R = logits_RV.argmax(1)
    scores_RV = logits_RV.float() / temperatures_R.masked_fill(greedy_R, 1.0)[:, None]
    scores_RV = keep_top(scores_RV, top_k, top_p)
    sums_RV = scores_RV.softmax(1).cumsum(1, dtype=torch.float64)
    total_R = sums_RV[:, -1]
    aim_R = torch.minimum(uniforms_R * total_R, torch.nextafter(total_R, torch.zeros_like(total_R)))
    drawn_R = torch.searchsorted(sums_RV, aim_R[:, None], right=True)[:, 0]
    return torch.where(greedy_R, tokens_R, drawn_R)


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
