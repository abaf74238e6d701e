"""Rules that score answers: what passes, what fails, and what a user is told of a function that breaks."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from pydantic import TypeAdapter

from finetune.data.prepare_prompts import Prompt
from finetune.engine.checkers import check_of, is_json, number_in
from finetune.errors import DataError, InputError
from finetune.recipe.sampling_stages import Checker
from finetune.shapes import Completion, Origin


def prompt(**columns):
    return Prompt(np.array([1]), Completion("q", ""), 1, Origin("p.jsonl", line=3), columns)


def checked(settings, text, functions=None, finished=True, **columns):
    rule = check_of(TypeAdapter(Checker).validate_python(settings), functions or {})
    return rule(prompt(**columns), text, finished)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 1,234.50.", "1234.50"),
        ("$5", "5"),
        ("$ 1,200.", "1200"),
        ("-$7", "-7"),
        ("\u22127", "-7"),
        ("12%", "12"),
        ("so 7.", "7"),
        ("it rose by 1e3", "1000"),
        ("1,2", "2"),
        ("1,2345", "2345"),
        ("3-5", "5"),
        ("7 - 4", "4"),
        ("- 4 apples", "4"),
        ("x = -.5", "-0.5"),
        ("(-4)", "-4"),
        ("She has 3.\n#### 18", "18"),
        ("#### 18 of 20", "18"),
        ("#### 1\n#### -2,000", "-2000"),
        ("5 apples ####", None),
        ("none at all", None),
        ("1e99999999999999999999", None),  # more than a Decimal can hold
        ("#### 1e-99999999999999999999", None),
    ],
)
def test_the_number_of_an_answer(text, number):
    assert number_in(text) == (None if number is None else Decimal(number))


def test_numbers_are_compared_as_decimals():
    rule = {"kind": "number"}
    assert checked(rule, "it is 0.30", answer="#### 0.3") == 1.0
    assert checked(rule, "it is 18", answer=18) == 1.0
    assert checked(rule, "it is 18.0", answer=18) == 1.0
    assert checked(rule, "it is 0.1", answer=0.1) == 1.0
    assert checked(rule, "it is 18", answer="The 18 of 19") == 0.0
    assert checked(rule, "I cannot say", answer=18) == 0.0
    assert checked({"kind": "number", "column": "right"}, "18", right="1,8", answer="18") == 0.0


@pytest.mark.parametrize("value", [None, "no number", True, [18], float("nan")])
def test_a_row_without_a_number_is_named(value):
    with pytest.raises(DataError, match=r"p\.jsonl:3: field 'answer'"):
        checked({"kind": "number"}, "18", answer=value)


def test_regex():
    assert checked({"kind": "regex", "pattern": "^Yes"}, "Yes, it is") == 1.0
    assert checked({"kind": "regex", "pattern": "^yes"}, "Yes, it is") == 0.0
    assert checked({"kind": "regex", "pattern": "^yes", "ignore_case": True}, "Yes, it is") == 1.0


def test_json():
    assert is_json(' {"a": 1}\n', ()) and is_json("3", ()) and is_json('{"a": 1, "b": 2}', ("a", "b"))
    assert not is_json('{"a": 1} thanks', ()) and not is_json('{"a": 1}', ("b",)) and not is_json("[1]", ("a",))
    assert not is_json("NaN", ()) and not is_json("", ()) and not is_json("[" * 100_000, ())
    assert checked({"kind": "json", "keys": ["a"]}, '{"a": null}') == 1.0


def test_finished():
    assert checked({"kind": "finished"}, "x", finished=True) == 1.0
    assert checked({"kind": "finished"}, "x", finished=False) == 0.0


def test_a_function_of_the_users():
    rule = {"kind": "function", "name": "length"}
    assert checked(rule, "four", {"length": lambda prompt, text: len(text) + prompt.columns["more"]}, more=2) == 6.0
    with pytest.raises(InputError, match=r"no function 'length'.*given are other.*run_recipe\(…, functions="):
        checked(rule, "four", {"other": len})


def test_a_function_that_breaks_is_told_with_the_prompt():
    rule = {"kind": "function", "name": "f"}

    def breaks(prompt, text):
        raise KeyError("colour")

    with pytest.raises(InputError, match=r"checker 'f' failed on an answer to p\.jsonl:3: KeyError: 'colour'"):
        checked(rule, "x", {"f": breaks})
    for bad in (None, float("nan"), float("inf"), "high"):
        with pytest.raises(InputError, match=r"p\.jsonl:3: it has to return a finite number"):
            checked(rule, "x", {"f": lambda prompt, text, bad=bad: bad})
