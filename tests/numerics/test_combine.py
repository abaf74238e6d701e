"""Llama 2's combination of a helpfulness and a safety score, by hand."""

from __future__ import annotations

import math

import numpy as np

from finetune.numerics.combine import combine


def test_safety_counts_where_marked_or_low():
    """sigmoid(-2) = 0.119 is below 0.15, sigmoid(-1.5) = 0.182 is not."""
    helpfulness = np.array([1.0, 2.0, 3.0, 4.0])
    safety = np.array([-2.0, -1.5, -1.5, 5.0])
    marked = np.array([False, False, True, False])
    assert combine(helpfulness, safety, marked, 0.15).tolist() == [-2.0, 2.0, -1.5, 4.0]


def test_the_threshold_is_a_probability():
    safety = np.array([math.log(0.3 / 0.7)] * 2)
    helpfulness = np.array([9.0, 9.0])
    unmarked = np.zeros(2, dtype=bool)
    assert combine(helpfulness, safety, unmarked, 0.31).tolist() == safety.tolist()
    assert combine(helpfulness, safety, unmarked, 0.29).tolist() == [9.0, 9.0]


def test_very_low_and_very_high_scores():
    safety = np.array([-800.0, 800.0])
    assert combine(np.zeros(2), safety, np.zeros(2, dtype=bool), 0.15).tolist() == [-800.0, 0.0]
