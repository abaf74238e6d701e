"""From verdicts on pairs of answers to a win rate: rules and figures, whoever the judge is. No torch.

A tie is half a win. A judge that reads both answers at once is asked twice, with either answer first, and a verdict
counts only if it is the same both times: models prefer a place as well as an answer (Zheng et al. 2023). Everything
else, verdicts that cannot be read among it, is a tie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from finetune.numerics.bootstrap import level_interval, mean_interval
from finetune.reports.calibration import wilson

Verdict = Literal["first", "second", "tie", "unreadable"]
"""Of two answers as they were shown."""
Outcome = Literal["win", "loss", "tie"]
"""Of ours against theirs."""
FEWEST = 30
"""Prompts whose answers differ in length that a line through outcomes and lengths needs: fewer draw any line."""
WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}

_VERDICT = re.compile(r"verdict\W*(answer\s*)?(1|2|tie)\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*(answer\s*)?(1|2|tie)\W*", re.IGNORECASE)
_MEANS: dict[str, Verdict] = {"1": "first", "2": "second", "tie": "tie"}


@dataclass(frozen=True)
class Judged:
    """One prompt. outcome: what counts. orders: the verdicts with ours first and with theirs first, of a judge of
    pairs; empty where it was not asked. lengths: tokens of ours and of theirs."""

    outcome: Outcome
    orders: tuple[Verdict, ...]
    lengths: tuple[int, int]


def read_verdict(text: str) -> Verdict:
    """What a judge's reply says: its last "VERDICT: …", or the word alone."""
    if found := _VERDICT.findall(text):
        return _MEANS[found[-1][1].lower()]
    alone = _ALONE.fullmatch(text.strip())
    return _MEANS[alone.group(2).lower()] if alone else "unreadable"


def agreed(ours_first: Verdict, theirs_first: Verdict) -> Outcome:
    """What two verdicts on one pair, in both orders, come to."""
    if (ours_first, theirs_first) == ("first", "second"):
        return "win"
    if (ours_first, theirs_first) == ("second", "first"):
        return "loss"
    return "tie"


def by_scores(ours: float, theirs: float, margin: float) -> Outcome:
    """The higher score wins; within `margin` of each other they tie, at 0 only where they are equal."""
    if abs(ours - theirs) <= margin:
        return "tie"
    return "win" if ours > theirs else "loss"


def win_rate_results(judged: Sequence[Judged], *, seed: int = 0) -> dict[str, Any]:
    """All figures of a comparison, JSON.

    win_rate: with its interval over prompts. at_equal_length: what the straight line through outcome and difference in
    length gives where there is none; None where that cannot be estimated, and at_equal_length_left_out says why. Of a
    judge of pairs: inconsistent, the share of asked pairs whose two orders
    contradict each other; first, the share of the verdicts for one answer that went to the one shown first; unreadable,
    a count of verdicts. Raises ValueError for no prompts.
    """
    worth = np.array([WORTH[each.outcome] for each in judged])
    lengths = np.array([each.lengths for each in judged], dtype=np.float64)
    interval = mean_interval(worth, seed=seed).record()
    if len(set(worth)) == 1:  # resampling sees no spread where there may be some
        interval["low"], interval["high"] = wilson(float(worth.sum()), len(worth))
    results: dict[str, Any] = {
        "win_rate": interval,
        "prompts": len(judged),
        **{f"{name}": sum(each.outcome == outcome for each in judged) for name, outcome in _COUNTS.items()},
        "mean_tokens": float(lengths[:, 0].mean()),
        "their_mean_tokens": float(lengths[:, 1].mean()),
        "longer_wins": _longer_wins(judged),
        **_at_equal_length(worth, lengths, seed),
    }
    asked = [each.orders for each in judged if each.orders]
    if asked:
        results |= _order_figures(asked)
    return results


_COUNTS: dict[str, Outcome] = {"wins": "win", "losses": "loss", "ties": "tie"}


def _order_figures(asked: Sequence[tuple[Verdict, ...]]) -> dict[str, Any]:
    verdicts = [verdict for orders in asked for verdict in orders]
    decided = [verdict for verdict in verdicts if verdict in ("first", "second")]
    same_place = sum(orders in (("first", "first"), ("second", "second")) for orders in asked)
    half = sum((orders[0] == "tie") != (orders[1] == "tie") and "unreadable" not in orders for orders in asked)
    low, high = wilson(same_place + half, len(asked))
    return {
        "inconsistent": {"value": (same_place + half) / len(asked), "low": low, "high": high},
        "first": sum(verdict == "first" for verdict in decided) / len(decided) if decided else None,
        "unreadable": verdicts.count("unreadable"),
    }


def _longer_wins(judged: Sequence[Judged]) -> float | None:
    """Of the pairs that someone won and that differ in length, the share that the longer answer won."""
    won = [each for each in judged if each.outcome != "tie" and each.lengths[0] != each.lengths[1]]
    if not won:
        return None
    return sum((each.outcome == "win") == (each.lengths[0] > each.lengths[1]) for each in won) / len(won)


def _at_equal_length(worth: Any, lengths: Any, seed: int) -> dict[str, Any]:
    """at_equal_length, or why it is left out. Differences in length are bent by tanh at their deviation, so that a few
    very long answers do not turn the line (as AlpacaEval's length control does; its model is logistic, this one
    straight). A straight line may leave [0, 1], and clipping it there would show an interval of no width."""
    apart = lengths[:, 0] - lengths[:, 1]
    why, found = None, None
    if np.count_nonzero(apart) < FEWEST:
        why = f"fewer than {FEWEST} prompts have answers of different length"
    elif apart.min() > 0 or apart.max() < 0:
        why = "one side's answers are always the longer"
    elif len(set(worth)) == 1:
        why = "all prompts came out alike"
    else:
        found = level_interval(worth, np.tanh(apart / apart.std()), seed=seed).record()
        if found["low"] < 1e-9 or found["high"] > 1 - 1e-9:
            why, found = "the fitted line ends at or beyond 0 % or 100 % in more than 1 of 40 resamples", None
    return {"at_equal_length": found, "at_equal_length_left_out": why}
