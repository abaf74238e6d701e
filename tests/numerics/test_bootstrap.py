"""Bootstrap intervals: means by hand, coverage on samples whose truth is known, and what pairing and weights do."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.numerics.bootstrap import difference_interval, level_interval, mean_interval


def test_the_value_is_the_mean_and_the_ends_enclose_it():
    found = mean_interval([1.0, 2.0, 3.0, 6.0])
    assert found.value == 3.0 and 1.0 < found.low < 3.0 < found.high < 6.0
    assert found == mean_interval([1.0, 2.0, 3.0, 6.0])  # seeded
    draws = np.random.default_rng(0).normal(size=50)
    assert mean_interval(draws) != mean_interval(draws, seed=1)


def test_two_rows_by_hand():
    """Of two rows every resample's mean is 0, 1/2 or 1, with chances 1/4, 1/2, 1/4: the ends are 0 and 1."""
    found = mean_interval([0.0, 1.0])
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


def test_19_of_20_intervals_hold_the_truth():
    generator = np.random.default_rng(5)
    held = 0
    for seed in range(400):
        found = mean_interval(generator.exponential(size=60), resamples=500, seed=seed)
        held += found.low <= 1.0 <= found.high
    assert 0.90 < held / 400 < 0.97  # a skewed law and 60 rows: a little below 95 %


def test_weights_make_the_mean_one_over_tokens():
    losses, tokens = [1.0, 3.0], [30, 10]
    assert mean_interval(losses, weights=tokens).value == (1.0 * 30 + 3.0 * 10) / 40
    same = mean_interval([1.0, 2.0, 9.0], weights=[1, 1, 0])
    assert same.value == 1.5 and same.high <= 2.0  # a row of no weight is never seen
    with pytest.raises(ValueError, match="no rows"):
        mean_interval([1.0], weights=[0])
    with pytest.raises(ValueError, match="no rows"):
        mean_interval([])


def test_a_paired_difference_is_narrower_than_its_parts():
    generator = np.random.default_rng(2)
    hard = generator.normal(size=200) * 10
    ours, theirs = hard + generator.normal(size=200), hard + 1 + generator.normal(size=200)
    found = difference_interval(list(ours), list(theirs))
    assert found.value == pytest.approx((ours - theirs).mean())
    assert found.high < 0 and found.high - found.low < 0.6
    assert mean_interval(ours).high - mean_interval(ours).low > 2


def test_the_level_of_a_line():
    """y = 0.5 + 0.25 x exactly: 0.5 where x is 0, whatever rows are drawn."""
    x = np.array([-1.0, 0.5, 2.0, 3.0])
    found = level_interval(0.5 + 0.25 * x, x)
    # Four equal rows can be drawn, whose line is level: the ends may be their means.
    assert found.value == pytest.approx(0.5)
    flat = level_interval([0.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert flat.value == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no rows"):
        level_interval([], [])
