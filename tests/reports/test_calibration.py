import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DivergedError
from finetune.reports.calibration import (
    OTHERS,
    SLICE_VALUES,
    ScoredPairs,
    accuracy,
    by_value,
    calibration,
    length_dependence,
    pearson,
    reward_report,
    spearman,
    wilson,
)
from finetune.shapes import RATINGS

LN3 = math.log(3)
# Gaps ln 3 (right, confidence 3/4), -ln 3 (wrong, 3/4), ln 3 (right), 0 (tie, 1/2).
PAIRS = ScoredPairs(
    chosen=[LN3, 0.0, LN3, 2.0],
    rejected=[0.0, LN3, 0.0, 2.0],
    chosen_tokens=[10, 20, 30, 40],
    rejected_tokens=[5, 25, 10, 40],
    ratings=["negligibly_better", "significantly_better", "negligibly_better", None],
    slices={"source": ["a", "b", "a", None]},
)


def test_numbers_by_hand():
    report = reward_report(PAIRS)
    assert report["pairs"] == 4 and report["ties"] == 1
    assert report["accuracy"] == 2.5 / 4
    assert report["mean_gap"] == pytest.approx(LN3 / 4)
    assert report["log_loss"] == pytest.approx((2 * math.log(4 / 3) + math.log(4) + math.log(2)) / 4)
    assert report["chosen"]["mean"] == pytest.approx((2 * LN3 + 2) / 4)
    assert report["rejected"] == {"mean": pytest.approx((LN3 + 2) / 4), "deviation": pytest.approx(
        math.sqrt((LN3**2 + 4) / 4 - ((LN3 + 2) / 4) ** 2))}  # fmt: skip


def test_groups_by_hand():
    report = reward_report(PAIRS)
    assert list(report["by_rating"]) == ["significantly_better", "negligibly_better", "(none)"]
    found = {name: (row["pairs"], row["accuracy"]) for name, row in report["by_rating"].items()}
    assert found == {"significantly_better": (1, 0.0), "negligibly_better": (2, 1.0), "(none)": (1, 0.5)}
    assert report["by_slice"]["source"]["a"]["mean_gap"] == pytest.approx(LN3)
    assert reward_report(ScoredPairs([1.0], [0.0], [1], [1]))["by_rating"] == {}


def test_calibration_by_hand():
    found = reward_report(PAIRS)["calibration"]
    filled = {(row["low"], row["high"]): row for row in found["bins"] if row["pairs"]}
    assert len(found["bins"]) == 10 and set(filled) == {(0.5, 0.55), (0.75, 0.8)}
    tie, sure = filled[0.5, 0.55], filled[0.75, 0.8]
    assert (tie["pairs"], tie["confidence"], tie["accuracy"]) == (1, 0.5, 0.5)
    assert (sure["pairs"], sure["confidence"], sure["accuracy"]) == (3, pytest.approx(0.75), pytest.approx(2 / 3))
    assert found["ece"] == pytest.approx(3 / 4 * (0.75 - 2 / 3))
    assert found["overconfidence"] == pytest.approx((3 * 0.75 + 0.5 - 2.5) / 4)
    assert found["brier"] == pytest.approx((1 / 16 + 9 / 16 + 1 / 16 + 0) / 4)
    assert found["bins"][9] == {
        "low": 0.95, "high": 1.0, "pairs": 0,
        "confidence": None, "accuracy": None, "accuracy_low": None, "accuracy_high": None,
    }  # fmt: skip


def test_a_calibrated_model_has_almost_no_error_and_a_loud_one_has():
    """Labels drawn from sigmoid(gap) itself; ten times the gap claims to be surer than it is."""
    random = np.random.default_rng(0)
    gaps = random.normal(0, 1.5, 20_000)
    better_won = random.random(len(gaps)) < 1 / (1 + np.exp(-gaps))
    gaps = np.where(better_won, gaps, -gaps)
    honest, loud = calibration(gaps), calibration(10 * gaps)
    assert honest["ece"] < 0.015 and abs(honest["overconfidence"]) < 0.01
    assert loud["ece"] > 0.15 and loud["overconfidence"] > 0.15


@given(st.lists(st.floats(-40, 40), min_size=1, max_size=60))
def test_folding_is_counting_both_orders(gaps):
    """The ECE of [0.5, 1] equals that of every pair in both orders over [0, 1] in twice as many bins."""
    gaps = np.array([gap for gap in gaps if abs(gap) > 1e-9] or [1.0])
    p = 1 / (1 + np.exp(-np.concatenate([gaps, -gaps])))
    won = np.repeat([1.0, 0.0], len(gaps))
    # bins closed at their outer side, so that each is the mirror image of another
    place = np.where(
        p >= 0.5, np.minimum(((p - 0.5) * 20).astype(int), 9), -1 - np.minimum(((0.5 - p) * 20).astype(int), 9)
    )
    both = sum((place == b).mean() * abs(won[place == b].mean() - p[place == b].mean()) for b in np.unique(place))
    assert calibration(gaps)["ece"] == pytest.approx(both, abs=1e-9)


def test_wilson_by_hand():
    # 8 of 10 at z = 1.96: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.009604)) / 1.38416
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == 1.0
    assert wilson(5, 5)[0] == pytest.approx(0.5655, abs=1e-3)


def test_rare_values_are_put_together():
    values = ["often"] * 5 + [f"rare {n:02}" for n in range(30)]
    groups = by_value(np.ones(35), values)
    assert len(groups) == SLICE_VALUES and next(iter(groups)) == "often"
    assert sum(row["pairs"] for row in groups.values()) == 35
    assert groups[OTHERS]["pairs"] == 35 - 5 - (SLICE_VALUES - 2)
    exactly = by_value(np.ones(SLICE_VALUES), [str(n) for n in range(SLICE_VALUES)])
    assert len(exactly) == SLICE_VALUES and OTHERS not in exactly


def test_length_by_hand():
    # gaps ln 3, -ln 3, ln 3, 0; chosen longer by 5, -5, 20, 0 tokens
    found = reward_report(PAIRS)["length"]
    assert found["longer_is_better"] == pytest.approx(2 / 3)
    assert found["longer_scores_higher"] == 1.0  # the shorter answer was chosen once, and scored lower
    # ranks of the gaps 3.5, 1, 3.5, 2 and of the lengths 3, 1, 4, 2
    assert found["pairs"]["spearman"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    gaps, longer = np.array([1, -1, 1, 0]) - 0.25, np.array([5, -5, 20, 0]) - 5
    assert found["pairs"]["pearson"] == pytest.approx(gaps @ longer / math.sqrt((gaps @ gaps) * (longer @ longer)))


def test_length_that_never_differs_is_undefined():
    same = np.full(3, 7.0)
    found = length_dependence(np.array([1.0, 2, 3]), np.array([0.0, 0, 0]), same, same)
    assert found == {
        "answers": {"pearson": None, "spearman": None},
        "pairs": {"pearson": None, "spearman": None},
        "longer_is_better": None,
        "longer_scores_higher": None,
    }


def test_correlations():
    x = np.array([1.0, 2, 3, 4])
    assert pearson(x, -2 * x) == spearman(x, -2 * x) == -1.0
    assert spearman(x, np.exp(x)) == 1.0 > pearson(x, np.exp(x))
    assert pearson(x * 1e-200, x * 1e200) == pytest.approx(1.0)
    assert pearson(x[:1], x[:1]) is None and pearson(x, np.ones(4)) is None


finite = st.floats(-1e6, 1e6)


counts, ratings = st.integers(0, 5000), st.sampled_from((*RATINGS, None))
row = st.tuples(finite, finite, counts, counts, ratings, st.text(max_size=3))


@given(st.lists(row, min_size=1, max_size=30))
def test_any_report_is_json(rows):
    chosen, rejected, long, short, ratings, values = zip(*rows, strict=True)
    report = reward_report(ScoredPairs(chosen, rejected, long, short, ratings, {"column": values}))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert 0 <= report["low"] <= report["accuracy"] + 1e-12 and report["accuracy"] <= report["high"] + 1e-12
    assert 0 <= report["calibration"]["ece"] <= 1
    assert sum(row["pairs"] for row in report["calibration"]["bins"]) == len(rows)
    swapped = reward_report(ScoredPairs(rejected, chosen, short, long))
    assert swapped["accuracy"] == pytest.approx(1 - report["accuracy"])


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(DivergedError, match=r"1 of 3 held-out pairs .* first pair 1 .* lower train.learning_rate"):
        reward_report(ScoredPairs([1.0, math.nan, 2.0], [0.0, 0.0, 0.0], [1] * 3, [1] * 3))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        reward_report(ScoredPairs([], [], [], []))
    with pytest.raises(ValueError, match="one entry for each pair"):
        reward_report(ScoredPairs([1.0], [0.0], [1], [1, 2]))
    with pytest.raises(ValueError, match="one entry for each pair"):
        reward_report(ScoredPairs([1.0], [0.0], [1], [1], slices={"a": []}))


def test_accuracy_of_one_pair():
    assert accuracy(np.array([0.3]))["accuracy"] == 1.0
    assert accuracy(np.array([-0.3]))["mean_gap"] == -0.3
