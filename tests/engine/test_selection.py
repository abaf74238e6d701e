"""Which answers are kept, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from finetune.engine.selection import Candidate, Choice, choose
from finetune.recipe.sampling_stages import RejectStage


def stage(**settings: Any) -> RejectStage:
    given = {"kind": "reject", "prompts": [{"path": "p.jsonl"}], "checker": {"kind": "finished"}, **settings}
    return TypeAdapter(RejectStage).validate_python(given)


ANSWERS = [
    Candidate("b", 1.0, True),
    Candidate("a", 3.0, True),
    Candidate("a", 3.0, True),
    Candidate("cut", 9.0, False),
    Candidate(" ", 8.0, True),
    Candidate("d", 0.0, True),
    Candidate("e", 1.0, True),
]
LOST = (None, None, "duplicate", "unfinished", "blank", None, None)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, (1,)),
        ({"best_n": 3}, (1, 0, 6)),
        ({"best_n": 9}, (1, 0, 6, 5)),
        ({"best_n": 9, "threshold": 1.0}, (1, 0, 6)),
        ({"threshold": 3.5}, ()),
        ({"keep": "above", "threshold": 1.0}, (1, 0, 6)),
        ({"keep": "pairs"}, (1, 5)),
        ({"keep": "pairs", "min_gap": 3.0}, (1, 5)),
        ({"keep": "pairs", "min_gap": 3.1}, ()),
        ({"keep": "pairs", "threshold": 3.0}, (1, 5)),
        ({"keep": "pairs", "threshold": 3.1}, ()),
    ],
)
def test_what_is_kept(settings: dict[str, Any], kept: tuple[int, ...]) -> None:
    assert choose(stage(**settings), ANSWERS) == Choice(kept, LOST)


def test_unfinished_and_duplicates_may_stay() -> None:
    everything = stage(best_n=9, unfinished="keep", duplicates="keep")
    assert choose(everything, ANSWERS) == Choice((3, 1, 2, 0, 6, 5), (None,) * 4 + ("blank", None, None))


def test_an_unfinished_answer_makes_no_duplicate_of_a_finished_one() -> None:
    answers = [Candidate("a", 1.0, False), Candidate("a", 1.0, True)]
    assert choose(stage(), answers) == Choice((1,), ("unfinished", None))


def test_answers_that_differ_by_white_space_make_no_pair() -> None:
    pairs = stage(keep="pairs")
    answers = [Candidate("a b", 3.0, True), Candidate("c", 2.0, True), Candidate("a  b", 1.0, True)]
    assert choose(pairs, answers).kept == (0, 1)
    assert choose(pairs, answers[::2]).kept == ()


def test_equal_scores_make_no_pair() -> None:
    assert choose(stage(keep="pairs"), [Candidate("a", 1.0, True), Candidate("b", 1.0, True)]).kept == ()
    assert choose(stage(keep="pairs"), []).kept == ()
