"""Percentile bootstrap: how far a mean over rows could have come out otherwise, had other rows been drawn.

Rows are what is resampled, so they have to be independent of each other: prompts, not the several answers to one.
Letters: N rows, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""The ends of a 95 % interval are then the 50th lowest and the 50th highest mean; from seed to seed they move by about
1 % of its width."""
_DRAWS_AT_ONCE = 2**22

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """value: of all rows. low, high: of its 95 % interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def mean_interval(
    values: ArrayLike, *, weights: ArrayLike | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over rows, sum(weights * values) / sum(weights), with its 95 % interval.

    values: [N] of one figure a row; for a difference of two runs, each row's own difference: then what makes a row hard
    for both does not widen the interval. weights: [N] >= 0, such as tokens a row; None = all alike. Rows that all have
    the same value give an interval of no width: resampling cannot see what was never drawn. Raises ValueError for no
    rows, and for weights that are all 0.
    """
    values_N = np.asarray(values, dtype=np.float64)
    weights_N = np.ones_like(values_N) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values_N) == 0 or weights_N.sum() <= 0:
        raise ValueError("there is no mean of no rows")

    def means(drawn_RN: Indices) -> NDArray[np.float64]:
        weight_RN = weights_N[drawn_RN]
        weight_R = weight_RN.sum(axis=1)
        has = weight_R > 0  # resamples that drew nothing of weight have no mean
        return (values_N[drawn_RN] * weight_RN).sum(axis=1)[has] / weight_R[has]

    return _interval(means, len(values_N), resamples, seed)


def level_interval(values: ArrayLike, beside: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """What `values` would be where `beside` is 0: the intercept of the straight line through them, with its interval.

    values, beside: [N]. Where `beside` does not vary the line is level, and the intercept is the mean.
    Raises ValueError for no rows.
    """
    y_N, x_N = np.asarray(values, dtype=np.float64), np.asarray(beside, dtype=np.float64)
    if len(y_N) == 0:
        raise ValueError("there is no line through no rows")

    def intercepts(drawn_RN: Indices) -> NDArray[np.float64]:
        y_RN, x_RN = y_N[drawn_RN], x_N[drawn_RN]
        y_R, x_R = y_RN.mean(axis=1), x_RN.mean(axis=1)
        spread_R = ((x_RN - x_R[:, None]) ** 2).sum(axis=1)
        together_R = ((x_RN - x_R[:, None]) * (y_RN - y_R[:, None])).sum(axis=1)
        slope_R = np.divide(together_R, spread_R, out=np.zeros_like(y_R), where=spread_R > 1e-12)
        return y_R - slope_R * x_R

    return _interval(intercepts, len(y_N), resamples, seed)


def difference_interval(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of ours - theirs over the same rows, with its 95 % interval."""
    return mean_interval(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64), seed=seed)


def _interval(figure: Callable[[Indices], NDArray[np.float64]], rows: int, resamples: int, seed: int) -> Interval:
    """figure: [R, N] indices of rows -> [R] values, fewer where some have none."""
    value = float(figure(np.arange(rows)[None])[0])
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // rows)
    found = [
        figure(generator.integers(0, rows, (min(at_once, resamples - first), rows)))
        for first in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    # The mean of equal values may differ from them in its last bit.
    return Interval(value, float(min(low, value)), float(max(high, value)))
