"""Best of k: the estimate by hand and against all subsets, the bound by hand and against a computed divergence."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from finetune.numerics.best_of import best_of_curve, kl_bound, mean_best_of, powers_of_two


def test_by_hand():
    """Of 1, 2, 4 the pairs are (1, 2), (1, 4), (2, 4): their best are 2, 4, 4, on average 10 / 3."""
    scores = np.array([4.0, 1.0, 2.0])
    assert mean_best_of(scores, 1) == pytest.approx(7 / 3)
    assert mean_best_of(scores, 2) == pytest.approx(10 / 3)
    assert mean_best_of(scores, 3) == pytest.approx(4.0)


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_it_is_the_mean_over_all_subsets(k):
    scores = np.random.default_rng(3).normal(size=8).round(1)  # with ties
    slowly = np.mean([max(subset) for subset in combinations(scores, k)])
    assert mean_best_of(scores, k) == pytest.approx(slowly)


def test_many_samples_are_no_trouble():
    scores = np.arange(2000.0)
    assert mean_best_of(scores, 2000) == 1999.0
    assert mean_best_of(scores, 2) == pytest.approx(2001 * 2 / 3 - 1)


@pytest.mark.parametrize("k", [0, 4])
def test_more_than_there_are(k):
    with pytest.raises(ValueError, match="from 3 samples"):
        mean_best_of(np.zeros(3), k)


def test_the_bound():
    assert kl_bound(1) == 0.0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_bound(16) == pytest.approx(1.8351, abs=1e-4)
    # Two answers of 0.1 and 0.9, the rarer one better: best of 2 gives it with 0.19.
    divergence = 0.19 * math.log(0.19 / 0.1) + 0.81 * math.log(0.81 / 0.9)
    assert 0 < divergence < kl_bound(2)
    # Of 10,000 equally likely answers the i-th is the best of 4 with ((i + 1)^4 - i^4) / n^4.
    n = 10_000
    share = np.diff(np.arange(n + 1.0) ** 4) / n**4
    assert float((share * np.log(share * n)).sum()) == pytest.approx(kl_bound(4), abs=1e-3)


def test_the_curve():
    assert powers_of_two(1) == [1] and powers_of_two(8) == [1, 2, 4, 8] and powers_of_two(12) == [1, 2, 4, 8]
    curve = best_of_curve([np.array([1.0, 3.0]), np.array([0.0, 0.0])])
    assert [(point.k, point.mean, point.kl) for point in curve] == [(1, 1.0, 0.0), (2, 1.5, kl_bound(2))]
    # Over prompts 2 and 0: a deviation of sqrt(2), an error of 1.
    assert curve[0].error == pytest.approx(1.0)
    assert best_of_curve([np.array([1.0])])[0].error is None
