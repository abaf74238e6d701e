"""Which number an answer ends with, how problems are asked, and files that are none."""

from __future__ import annotations

from decimal import Decimal

import pytest

from finetune.errors import DataError
from finetune.evaluation.gsm8k import INSTRUCTION, final_number, prompt_of, read_problems
from finetune.shapes import Completion, Dialog


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she makes 9 * 2 = $18.\n#### 18", "18"),
        ("She has 1,050.00 dollars.", "1050"),
        ("#### $1,050.", "1050"),
        ("#### 12\nbecause 3 and 4", "12"),  # behind the mark the first
        ("#### 12 or rather #### 13", "13"),
        ("#### eighteen, that is 18", "18"),
        ("The answer is -3", "-3"),
        ("The answer is \u22123", "-3"),
        ("10-3", "3"),  # taken from, not a sign
        ("It costs .5 dollars", "0.5"),
        ("It is 3.50.", "3.5"),
        ("Half: 1/2", "2"),  # fractions are not read
        ("between 3 and 4 apples", "4"),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_the_real_problems(shared):
    problems = read_problems(shared / "data/gsm8k_test.jsonl")
    assert len(problems) == 400 and problems[0].number == 18
    assert all(final_number(problem.solution) == problem.number for problem in problems)
    assert "<<" not in problems[0].solution and "16 - 3 - 4 = 9" in problems[0].solution


def test_how_a_problem_is_asked(shared):
    first, second, third = read_problems(shared / "data/gsm8k_test.jsonl")[:3]
    alone = prompt_of(first, [], True)
    assert isinstance(alone, Dialog) and [m.content for m in alone.messages] == [first.question + INSTRUCTION]
    shown = prompt_of(first, [second, third], True)
    assert isinstance(shown, Dialog)
    assert [m.role for m in shown.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert shown.messages[1].content == second.solution and second.solution.endswith("#### 3")
    plain = prompt_of(first, [second], False)
    assert isinstance(plain, Completion) and plain.prompt.startswith(f"Question: {second.question}\nAnswer:")
    assert plain.prompt.endswith(f"Question: {first.question}\nAnswer:") and INSTRUCTION not in plain.prompt
    assert INSTRUCTION in prompt_of(first, [], False).prompt


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"question": "a", "answer": "#### 1"}\n{"question": "a"}\n', "p.jsonl:2"),
        ('{"question": "a", "answer": "one"}\n', "does not end with ####"),
        ('{"question": "a", "answer": "#### one"}\n', "does not end with ####"),
        ("{]\n", "p.jsonl:1"),
        ("", "empty"),
    ],
)
def test_files_that_are_none(tmp_path, content, told):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(DataError) as error:
        read_problems(tmp_path / "p.jsonl")
    assert told in str(error.value)
