"""What the best of k samples is worth: its mean score, and how far choosing it can move the policy.

Legend: N samples of one prompt, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BestOf:
    """mean: over prompts of the expected best score of k samples; error: its standard error over prompts, None for a
    single prompt. kl: the bound on the divergence from the policy, nats."""

    k: int
    mean: float
    error: float | None
    kl: float


def mean_best_of(scores_N: NDArray[np.float64], k: int) -> float:
    """Unbiased estimate of the expected best score of k samples, from N >= k samples of one prompt.

    The mean over all subsets of size k: in ascending order the i-th score (from 1) is the best of C(i-1, k-1) of the
    C(N, k) subsets. Raises ValueError where k is not in 1..N.
    """
    count = len(scores_N)
    if not 1 <= k <= count:
        raise ValueError(f"the best of {k} cannot be estimated from {count} samples")
    subsets = math.comb(count, k)
    weights = [math.comb(rank, k - 1) / subsets for rank in range(count)]
    return float(np.dot(weights, np.sort(scores_N)))


def kl_bound(k: int) -> float:
    """log k - (k - 1) / k, nats: an upper bound on KL(best of k || policy), close where no answer is likely by itself.

    The formula: Stiennon et al. 2020. That it is a bound and not an equality: Beirami et al. 2024.
    """
    return math.log(k) - (k - 1) / k


def powers_of_two(samples: int) -> list[int]:
    """1, 2, 4 … up to the number of samples."""
    return [2**power for power in range(samples.bit_length())]


def best_of_curve(scores: Sequence[NDArray[np.float64]]) -> list[BestOf]:
    """For k = 1, 2, 4 … the mean best of k over P >= 1 prompts, which all have the same number of samples."""
    curve = []
    for k in powers_of_two(len(scores[0])):
        means_P = np.array([mean_best_of(scores_N, k) for scores_N in scores])
        error = float(means_P.std(ddof=1) / math.sqrt(len(means_P))) if len(means_P) > 1 else None
        curve.append(BestOf(k, float(means_P.mean()), error, kl_bound(k)))
    return curve
