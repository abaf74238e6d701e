"""The rules of a comparison, each by hand."""

from __future__ import annotations

import json

import pytest

from finetune.cli.eval_shown import shown
from finetune.evaluation.verdicts import Judged, agreed, by_scores, read_verdict, win_rate_results
from finetune.plan.evaluations import Evaluation

SAME = (10, 10)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("It is right.\nVERDICT: 1", "first"),
        ("**Verdict:** 2.", "second"),
        ("verdict - TIE", "tie"),
        ("VERDICT: Answer 2", "second"),
        ("I would say VERDICT: 1 at first, but no. VERDICT: 2", "second"),
        ("2", "second"),
        (" Answer 1. ", "first"),
        ("tie", "tie"),
        ("Both are fine", "unreadable"),
        ("VERDICT: 3", "unreadable"),
        ("VERDICT: 12", "unreadable"),
        ("1 or 2", "unreadable"),
        ("", "unreadable"),
    ],
)
def test_reading_a_verdict(text, verdict):
    assert read_verdict(text) == verdict


@pytest.mark.parametrize(
    ("orders", "outcome"),
    [
        (("first", "second"), "win"),
        (("second", "first"), "loss"),
        (("first", "first"), "tie"),  # it prefers a place
        (("second", "second"), "tie"),
        (("first", "tie"), "tie"),
        (("tie", "tie"), "tie"),
        (("first", "unreadable"), "tie"),
    ],
)
def test_a_verdict_counts_if_both_orders_agree(orders, outcome):
    assert agreed(*orders) == outcome


def test_scores_tie_where_they_are_equal_or_within_the_margin():
    assert by_scores(1.0, 1.0, 0.0) == "tie" and by_scores(1.0 + 1e-12, 1.0, 0.0) == "win"
    assert by_scores(1.0, 1.5, 0.5) == "tie" and by_scores(1.0, 1.51, 0.5) == "loss"


def test_all_figures_by_hand():
    judged = [
        Judged("win", ("first", "second"), (30, 10)),
        Judged("win", ("first", "second"), (20, 10)),
        Judged("loss", ("second", "first"), (10, 20)),
        Judged("tie", ("first", "first"), (10, 10)),
        Judged("tie", ("first", "tie"), (5, 10)),
        Judged("tie", ("tie", "tie"), (10, 12)),
        Judged("tie", ("first", "unreadable"), (10, 10)),
        Judged("tie", (), (10, 10)),  # the same text twice: nobody was asked
    ]
    found = win_rate_results(judged)
    assert (found["wins"], found["losses"], found["ties"], found["prompts"]) == (2, 1, 5, 8)
    assert found["win_rate"]["value"] == (2 + 5 / 2) / 8
    assert found["win_rate"]["low"] < 0.5 < found["win_rate"]["high"]
    # Asked were 7; (first, first) and (first, tie) contradict themselves.
    assert found["inconsistent"]["value"] == 2 / 7
    # Verdicts for one answer: first three pairs one each way, then four times the first: 7 of 10.
    assert found["first"] == 7 / 10 and found["unreadable"] == 1
    assert found["longer_wins"] == 1.0  # all three decided pairs went to the longer answer
    assert found["mean_tokens"] == 105 / 8 and found["their_mean_tokens"] == 92 / 8
    json.dumps(found)


def test_where_length_explains_everything_nothing_is_left_at_equal_length():
    """The longer answer always wins, ours is longer twice as often: 2/3 in all, about a half at equal length."""
    judged = [Judged("win", (), (20, 10))] * 40 + [Judged("loss", (), (10, 20))] * 20
    found = win_rate_results(judged)
    assert found["win_rate"]["value"] == pytest.approx(2 / 3)
    assert found["at_equal_length"]["value"] == pytest.approx(0.5)
    fair = [Judged("win", (), (20, 10)), Judged("win", (), (10, 20)), Judged("loss", (), (20, 10))] * 20
    fair += [Judged("loss", (), (10, 20))] * 20
    assert win_rate_results(fair)["at_equal_length"]["value"] == pytest.approx(0.5)


def test_at_equal_length_is_left_out_where_it_is_no_estimate():
    few = [Judged("win", (), (20, 10)), Judged("loss", (), (10, 20))] * 4
    longer = [Judged("win", (), (20, 10)), Judged("loss", (), (15, 10))] * 20
    alike = [Judged("loss", (), (20, 10)), Judged("loss", (), (10, 20))] * 20
    steep = [Judged("loss", (), (10, 20 + n)) for n in range(40)] + [Judged("win", (), (60, 20))] * 2
    level = [*few, *[Judged("win", (), SAME)] * 50]
    cases = {"fewer than 30": few, "of different length": level, "always the longer": longer, "came out alike": alike}
    for why, judged in {**cases, "ends at or beyond": steep}.items():
        found = win_rate_results(judged)
        assert found["at_equal_length"] is None and why in found["at_equal_length_left_out"], why
        lines = shown(Evaluation("win_rate", {"name": "p"}, {}, found, [{}] * len(judged)))
        assert [line for line in lines if "at equal length" in line] == [
            f"win rate at equal length: left out, {found['at_equal_length_left_out']}"
        ]
    usual = win_rate_results([Judged("win", (), (20, 10)), Judged("loss", (), (20, 10)), Judged("win", (), (10, 20)),
                              Judged("loss", (), (10, 20))] * 10)  # fmt: skip
    assert usual["at_equal_length_left_out"] is None
    assert 0 < usual["at_equal_length"]["low"] < 0.5 < usual["at_equal_length"]["high"] < 1


def test_all_of_one_kind_has_an_interval_all_the_same():
    found = win_rate_results([Judged("win", (), SAME)] * 10)["win_rate"]
    assert (found["low"], found["value"], found["high"]) == pytest.approx((0.722, 1.0, 1.0), abs=1e-3)


def test_length_as_a_judge_of_real_pairs(shared):
    """GPT-4's own choices among 400 pairs of AlpacaEval: how often a judge that likes the longer answer agrees with it.
    A check of the figures on real data, not of a model."""
    rows = [json.loads(line) for line in (shared / "data/alpaca_eval_judged.jsonl").read_text().splitlines()]
    judged = [
        Judged(
            "win" if row["preference"] == 1 else "loss" if row["preference"] == 2 else "tie",
            (),
            (len(row["output_1"].split()), len(row["output_2"].split())),
        )
        for row in rows
    ]
    found = win_rate_results(judged)
    assert found["prompts"] == 400 and found["wins"] + found["losses"] + found["ties"] == 400
    longer = [each for each in judged if each.outcome != "tie" and each.lengths[0] != each.lengths[1]]
    agree = sum((each.outcome == "win") == (each.lengths[0] > each.lengths[1]) for each in longer)
    assert found["longer_wins"] == agree / len(longer)
    assert 0.5 < found["longer_wins"] < 0.9
    low, value, high = (found["win_rate"][name] for name in ("low", "value", "high"))
    assert high - low < 0.11 and low < value < high
