"""How good a reward model is on held-out pairs, as numbers: accuracy, calibration, what it owes to length.

Pure functions on numpy; the results are JSON values (NaN never: what is undefined is None). Pictures: pictures.py.

Letters: P pairs; a gap is the score of the better answer minus that of the worse, in nats. A tie (gap exactly 0)
counts as half right, chance, where TRL counts it as wrong; ties are counted apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import DivergedError
from finetune.shapes import RATINGS

Floats = NDArray[np.float64]

BINS = 10
"""Reliability bins of [0.5, 1]: 0.05 wide, as wide as the usual 20 bins of [0, 1]."""
SLICE_VALUES = 20
"""Values of a column that get a line of their own; the rarer ones are put together."""
OTHERS = "(others)"
Z = 1.959964
"""Normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class ScoredPairs:
    """Held-out pairs and their scores; all sequences have one entry for each pair.

    chosen, rejected: [P] scores in nats, without margin. chosen_tokens, rejected_tokens: [P] answer lengths in tokens.
    ratings: how much better people found the chosen answer (shapes.RATINGS or any text), None where unknown; empty =
    no ratings. slices: for each metadata column the pairs' values.
    """

    chosen: Sequence[float] | Floats
    rejected: Sequence[float] | Floats
    chosen_tokens: Sequence[int] | NDArray[np.int64]
    rejected_tokens: Sequence[int] | NDArray[np.int64]
    ratings: Sequence[str | None] = ()
    slices: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


def reward_report(pairs: ScoredPairs, *, bins: int = BINS) -> dict[str, Any]:
    """Everything below as one JSON-able dict: for the manifest, and what the pictures are drawn from.

    Raises DivergedError for a score that is not finite, ValueError for no pairs or sequences of different lengths.
    """
    chosen, rejected = np.asarray(pairs.chosen, np.float64), np.asarray(pairs.rejected, np.float64)
    others = [pairs.chosen_tokens, pairs.rejected_tokens, *([pairs.ratings] if len(pairs.ratings) else [])]
    if not len(chosen):
        raise ValueError("a reward model's report needs at least one held-out pair")
    if any(len(column) != len(chosen) for column in (rejected, *others, *pairs.slices.values())):
        raise ValueError("scores, lengths, ratings and slices must have one entry for each pair")
    if not (finite := np.isfinite(chosen) & np.isfinite(rejected)).all():
        raise DivergedError(
            f"{int((~finite).sum())} of {len(chosen)} held-out pairs have a score that is not finite, first pair "
            f"{int(np.argmin(finite))} (from 0): the reward model has diverged; lower train.learning_rate"
        )
    gaps = chosen - rejected
    ratings = _in_order(by_value(gaps, pairs.ratings)) if len(pairs.ratings) else {}
    return {
        **accuracy(gaps),
        "ties": int((gaps == 0).sum()),
        "log_loss": float(np.logaddexp(0.0, -gaps).mean()),
        "chosen": _mean_and_deviation(chosen),
        "rejected": _mean_and_deviation(rejected),
        "calibration": calibration(gaps, bins=bins),
        "by_rating": ratings,
        "by_slice": {column: by_value(gaps, values) for column, values in pairs.slices.items()},
        "length": length_dependence(
            chosen,
            rejected,
            np.asarray(pairs.chosen_tokens, np.float64),
            np.asarray(pairs.rejected_tokens, np.float64),
        ),
    }


def accuracy(gaps: Floats) -> dict[str, Any]:
    """Accuracy of some pairs with its 95 % Wilson interval, and the mean gap in nats.

    The interval takes pairs as independent. Pairs of one ranking are not: it is too narrow for them.
    """
    count = len(gaps)
    right = float((np.sign(gaps) + 1).sum() / 2)
    low, high = wilson(right, count)
    return {
        "pairs": count,
        "accuracy": right / count,
        "low": low,
        "high": high,
        "mean_gap": float(gaps.mean()),
    }


def wilson(right: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `right` in `count` > 0 (Wilson 1927): honest near 0 and 1 and for few pairs."""
    share, spread = right / count, Z**2 / count
    middle = share + spread / 2
    half = Z * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, float((middle - half) / (1 + spread))), min(1.0, float((middle + half) / (1 + spread)))


def by_value(gaps: Floats, values: Sequence[str | None]) -> dict[str, dict[str, Any]]:
    """`accuracy` of the pairs of each value, most frequent first; those beyond SLICE_VALUES together as OTHERS.

    A missing value (None) is the value "(none)".
    """
    names = ["(none)" if value is None else str(value) for value in values]
    ranked = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    kept = {name for name, _ in (ranked if len(ranked) <= SLICE_VALUES else ranked[: SLICE_VALUES - 1])}
    groups: dict[str, list[int]] = {name: [] for name, _ in ranked if name in kept}
    rest: list[int] = []
    for index, name in enumerate(names):
        groups.get(name, rest).append(index)
    if rest:
        groups[OTHERS] = groups.get(OTHERS, []) + rest
    return {name: accuracy(gaps[indices]) for name, indices in groups.items()}


def calibration(gaps: Floats, *, bins: int = BINS) -> dict[str, Any]:
    """Whether sigmoid(gap) is the probability that it claims to be.

    A pair is always stored better answer first, so sigmoid(gap) has only one outcome and cannot be calibrated as it
    stands. Each pair is therefore read as a forecast about two answers in no order: confidence = sigmoid(|gap|) in
    [0.5, 1] that the higher-scored answer is the better one, right if gap > 0, half right if gap = 0. This equals
    counting every pair in both orders on [0, 1], where the left half mirrors the right.

    Returns `bins`: equal parts of [0.5, 1], each with low, high (the last one closed), pairs, mean confidence and
    accuracy with its Wilson interval (None where empty); `ece`: expected calibration error, the mean over pairs of
    |accuracy - confidence| of their bin (Naeini et al. 2015; Guo et al. 2017), which few pairs make too large;
    `overconfidence`: mean confidence minus accuracy of all pairs; `brier`: mean (confidence - outcome)^2, 0.25 for a
    model that knows nothing.
    """
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    right = (np.sign(gaps) + 1) / 2
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    rows: list[dict[str, Any]] = []
    error = 0.0
    for place in range(bins):
        here = places == place
        count = int(here.sum())
        row: dict[str, Any] = {"low": 0.5 + place / (2 * bins), "high": 0.5 + (place + 1) / (2 * bins), "pairs": count}
        row |= dict.fromkeys(("confidence", "accuracy", "accuracy_low", "accuracy_high"))
        if count:
            row["confidence"], row["accuracy"] = float(confidence[here].mean()), float(right[here].mean())
            row["accuracy_low"], row["accuracy_high"] = wilson(float(right[here].sum()), count)
            error += count / len(gaps) * abs(row["accuracy"] - row["confidence"])
        rows.append(row)
    return {
        "ece": float(error),
        "overconfidence": float(confidence.mean() - right.mean()),
        "brier": float(((confidence - right) ** 2).mean()),
        "bins": rows,
    }


def length_dependence(
    chosen: Floats, rejected: Floats, chosen_tokens: Floats, rejected_tokens: Floats
) -> dict[str, Any]:
    """How far the score is a matter of length. All inputs [P]; lengths in tokens.

    `answers`: correlation of score with length over all 2 P answers. `pairs`: of the gap with the difference of
    lengths, which a prompt's own level does not blur. `longer_is_better`: share of pairs where people prefer the
    longer answer (what always choosing it would be right in); `longer_scores_higher`: where the model does; both of
    pairs of different length, ties of score as half. Correlations are None where one side is constant.
    """
    scores, tokens = np.concatenate([chosen, rejected]), np.concatenate([chosen_tokens, rejected_tokens])
    gaps, longer = chosen - rejected, chosen_tokens - rejected_tokens
    differ = longer != 0
    agree = (np.sign(gaps) * np.sign(longer) + 1) / 2
    return {
        "answers": {"pearson": pearson(scores, tokens), "spearman": spearman(scores, tokens)},
        "pairs": {"pearson": pearson(gaps, longer), "spearman": spearman(gaps, longer)},
        "longer_is_better": float((longer[differ] > 0).mean()) if differ.any() else None,
        "longer_scores_higher": float(agree[differ].mean()) if differ.any() else None,
    }


def pearson(x: Floats, y: Floats) -> float | None:
    """Pearson's correlation of two sequences; None for fewer than two points or where one side is constant."""
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return None
    x, y = x - x.mean(), y - y.mean()
    # each side is scaled by itself first: squares of very small or large values would leave the range
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(x: Floats, y: Floats) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs."""
    return pearson(_ranks(x), _ranks(y))


def _ranks(x: Floats) -> Floats:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts - 1) / 2)[inverse]).astype(np.float64)


def _mean_and_deviation(scores: Floats) -> dict[str, float]:
    return {"mean": float(scores.mean()), "deviation": float(scores.std())}


def _in_order(groups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Llama 2's four ratings from the strongest to the weakest, then what else there is."""
    known = [rating for rating in RATINGS if rating in groups]
    return {name: groups[name] for name in (*known, *(name for name in groups if name not in known))}
