from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.recipe.positions import key_path_text, plain_scalar, position_at, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 0.0002),
        ("1E5", 100000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("+3", 3),
        ("010", 10),  # YAML 1.1 reads 8
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),  # YAML 1.1 reads 1000
        ("12:30:45", "12:30:45"),  # YAML 1.1 reads 45045
        ("2026-01-01", "2026-01-01"),  # YAML 1.1 reads a date
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("~", None),
        ("null", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("nan", "nan"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = read_yaml(f"key: {text}\n")
    assert found.problems == []
    assert found.value == {"key": value}
    assert type(found.value["key"]) is type(value)
    if not text.startswith(("'", "!")):
        assert plain_scalar(text) == value


def test_positions_of_keys_and_entries() -> None:
    text = "# comment\na: 1\nb:\n  c: [x, y]\n  d:\n    - e: 1\n"
    positions = read_yaml(text).positions
    lines = {key_path_text(path): (at.line, at.column) for path, at in positions.items()}
    assert lines == {
        "": (2, 1),
        "a": (2, 1),
        "b": (3, 1),
        "b.c": (4, 3),
        "b.c[0]": (4, 7),
        "b.c[1]": (4, 10),
        "b.d": (5, 3),
        "b.d[0]": (6, 7),
        "b.d[0].e": (6, 7),
    }
    nearest = position_at(positions, ("b", "d", 0, "missing", "deeper"))
    assert nearest is not None and nearest.line == 6


def test_all_duplicate_keys_are_told_and_the_first_counts() -> None:
    found = read_yaml("a: 1\nb: {c: 1, c: 2}\na: 2\na: 3\n")
    assert [(problem.line, problem.key_path) for problem in found.problems] == [(2, "b.c"), (3, "a"), (4, "a")]
    assert "already on line 1" in found.problems[1].message
    assert found.value == {"a": 1, "b": {"c": 1}}


def test_keys_are_text() -> None:
    assert read_yaml("1: a\nyes: b\nnull: c\n").value == {"1": "a", "yes": "b", "null": "c"}


def test_aliases_are_copies() -> None:
    found = read_yaml("a: &x {k: [1]}\nb: *x\n")
    assert found.value == {"a": {"k": [1]}, "b": {"k": [1]}}
    assert found.value["a"]["k"] is not found.value["b"]["k"]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n\t- b\n", 2, "a tab cannot indent"),
        ("a: 1\n b: 2\n", 2, "a ':' is not allowed here"),
        ("system: Answer: yes\n", 1, "a ':' is not allowed here"),
        ("a: 'b\nc: d\n", 2, "a quote opened on line 1 is not closed"),
        ("a: [1, 2\nb: 3\n", 2, "a '[' or '{' opened on line 1 is not closed"),
        ("a:\n  b: 1\n c: 2\n", 3, "does not fit the lines above"),
        ("a: 1\n---\nb: 2\n", 2, "a second document"),
        ("a: 1\nb: *gone\n", 2, "no anchor above"),
        ("a: 1\nb: @home\n", 2, "needs quotes"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "!!python/object/apply:os.system is not part"),
        ("a: 1\nb: !env HOME\n", 2, "the tag !env is not part"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, "merge keys"),
        ("a: &x [1, *x]\n", 1, "contains itself"),
        ("? [1]\n: 2\n", 1, "a key must be plain text"),
        ("a: 1\nb: \x07\n", 2, "U+0007 is not allowed"),
        ('a: 1\nb: "\\ud83d"\n', 2, "half of a surrogate pair"),
        ("a: !!int abc\n", 1, "'abc' is no int"),
    ],
)
def test_problems_name_the_line(text: str, line: int, words: str) -> None:
    problems = read_yaml(text).problems
    assert len(problems) == 1
    assert problems[0].line == line
    assert words in problems[0].message


def test_a_bomb_of_aliases_ends_in_a_problem() -> None:
    text = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for level in range(1, 12):  # ten to the twelfth values, were they built
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    problems = read_yaml(text).problems
    assert len(problems) == 1 and "too large" in problems[0].message


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 60 + "]" * 60])
def test_deep_nesting_ends_in_a_problem(text: str) -> None:
    assert len(read_yaml(text).problems) == 1


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc<~1 ", max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(_json)
def test_json_reads_as_itself(value: object) -> None:
    """JSON is YAML; ensure_ascii keeps characters out that YAML does not have."""
    found = read_yaml(json.dumps(value, ensure_ascii=True))
    assert found.problems == []
    assert found.value == value


@given(st.text(st.sampled_from("ab:1-[]{}'\"&*!|>%@#, \n\t?~<é\x00"), max_size=40))
def test_any_text_gives_a_value_or_problems(text: str) -> None:
    found = read_yaml(text)
    assert found.problems == [] or all(problem.message for problem in found.problems)
