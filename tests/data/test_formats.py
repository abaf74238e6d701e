"""Formats: told from the rows, and each row to an example or to a fault that names the field."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.convert import to_example
from finetune.data.fields import RowFault
from finetune.data.fitting import FORMATS
from finetune.data.formats import Known, known_format, unused_columns
from finetune.data.readers import RawRow
from finetune.data.sources import content_key
from finetune.errors import DataError
from finetune.shapes import Completion, Dialog, Message, Origin, Text, ToolCall

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


HUMAN = {"from": "human", "value": "q"}


def raw(*values: dict[str, Any]) -> list[RawRow]:
    return [RawRow(value, Origin("d.jsonl", line=line)) for line, value in enumerate(values, start=1)]


def convert(values: dict[str, Any], name: str = "auto", fields: dict[str, str] | None = None) -> Any:
    return to_example(values, known_format(name, fields or {}, raw(values), "d.jsonl"))


def fault(values: dict[str, Any], name: str, fields: dict[str, str] | None = None) -> tuple[str | None, str]:
    with pytest.raises(RowFault) as caught:
        convert(values, name, fields)
    return caught.value.field, caught.value.reason


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"instruction": "q", "input": "", "output": "a"},
            Dialog((Message("user", "q"), Message("assistant", "a"))),
        ),
        (
            {"instruction": "q", "input": "c", "output": "a", "system": "s", "history": [["q0", "a0"]]},
            Dialog(
                (
                    Message("system", "s"),
                    Message("user", "q0"),
                    Message("assistant", "a0"),
                    Message("user", "q", context="c"),
                    Message("assistant", "a"),
                )
            ),
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
            Dialog((Message("system", "s"), Message("user", "q"), Message("assistant", "a"))),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "q"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                    {"from": "observation", "value": ""},
                    {"from": "gpt", "value": "a"},
                ],
                "tools": '[{"name": "f"}]',
            },
            Dialog(
                (
                    Message("user", "q"),
                    Message("assistant", "", (ToolCall("f", {"x": 1}),)),
                    Message("tool", ""),
                    Message("assistant", "a"),
                ),
                ({"name": "f"},),
            ),
        ),
        ({"conversations": [USER, ANSWER]}, Dialog((Message("user", "q"), Message("assistant", "a")))),
        (
            {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
            Dialog((Message("user", "q"), Message("assistant", "a"))),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": ""},
                    {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "?"}]},
                    {"role": "assistant", "content": "no", "weight": 0},
                    {"role": "user", "content": "again", "tool_calls": None},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                        ],
                    },
                    {"role": "tool", "content": "1", "tool_call_id": "1"},
                    ANSWER,
                ],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            },
            Dialog(
                (
                    Message("user", "q?"),
                    Message("assistant", "no", trained=False),
                    Message("user", "again"),
                    Message("assistant", "", (ToolCall("f", {"x": 1}),)),
                    Message("tool", "1"),
                    Message("assistant", "a"),
                ),
                ({"type": "function", "function": {"name": "f"}},),
            ),
        ),
        ({"prompt": "q", "completion": " a"}, Completion("q", " a")),
        (
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            Dialog(
                (
                    Message("user", "q"),
                    Message("assistant", "a", trained=False),
                    Message("user", "q"),
                    Message("assistant", "a"),
                )
            ),
        ),
        ({"text": " t\n"}, Text(" t\n")),
    ],
)
def test_rows_of_every_format_are_detected_and_read(values: dict[str, Any], expected: object) -> None:
    assert convert(values) == expected


@pytest.mark.parametrize("bad", [12345, None, "", "  \n", True, ["a"], {"a": 1}, 1.5, "\ud800"])
@pytest.mark.parametrize(
    ("name", "field", "row"),
    [
        ("alpaca", "output", {"instruction": "q", "output": "BAD"}),
        ("alpaca", "instruction", {"instruction": "BAD", "output": "a"}),
        ("sharegpt", "conversations[1].value", {"conversations": [HUMAN, {"from": "gpt", "value": "BAD"}]}),
        ("messages", "messages[1].content", {"messages": [USER, {"role": "assistant", "content": "BAD"}]}),
        ("messages", "messages[0].content", {"messages": [{"role": "user", "content": "BAD"}, ANSWER]}),
        ("prompt_completion", "completion", {"prompt": "q", "completion": "BAD"}),
        ("text", "text", {"text": "BAD"}),
    ],
)  # fmt: skip
def test_what_is_not_text_is_never_trained_on(bad: object, name: str, field: str, row: dict[str, Any]) -> None:
    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: put(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [put(inner) for inner in value]
        return bad if value == "BAD" else value

    where, reason = fault(put(row), name)
    # A list stands where prompt_completion and messages could hold one: then the place inside it is named.
    assert reason and (where is None or where.startswith(field))


def test_reasons_say_what_stands_there() -> None:
    assert fault({"instruction": "q", "output": 12345}, "alpaca") == ("output", "should be text, is a number (12345)")
    assert fault({"instruction": "q", "output": None}, "alpaca") == ("output", "should be text, is null")
    assert fault({"instruction": "q", "output": ""}, "alpaca") == ("output", "is empty")
    assert fault({"instruction": "q", "ouput": "a"}, "alpaca") == (
        "output",
        "is missing; the fields are instruction, ouput (is 'ouput' a misspelling of it?)",
    )
    assert fault(
        {"question": 3, "answer": "a"}, "prompt_completion", {"prompt": "question", "completion": "answer"}
    ) == (
        "question",
        "should be text, is a number (3)",
    )


@pytest.mark.parametrize(
    ("row", "name", "field", "reason"),
    [
        ({"messages": []}, "messages", "messages", "has no messages"),
        ({"messages": "hello"}, "messages", "messages", "is not valid JSON"),
        ({"messages": 4}, "messages", "messages", "should be a list, is a number (4)"),
        ({"messages": ["hi"]}, "messages", "messages[0]", "should be an object, is text"),
        ({"messages": [USER]}, "messages", "messages", "no assistant turn"),
        (
            {"messages": [{"role": "asistant", "content": "a"}]},
            "messages",
            "messages[0].role",
            "did you mean 'assistant'?",
        ),
        (
            {"messages": [USER, {"role": "robot", "content": "a"}]},
            "messages",
            "messages[1].role",
            "unknown role 'robot'",
        ),
        ({"messages": [USER, {"content": "a"}]}, "messages", "messages[1].role", "is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "messages",
            "messages[0].content[0]",
            "only text is trained here",
        ),
        ({"messages": [USER, {**ANSWER, "weight": 2}]}, "messages", "messages[1].weight", "should be 0 or 1"),
        ({"messages": [{**USER, "weight": 1}, ANSWER]}, "messages", "messages[0].weight", "only an assistant turn"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}]},
            "messages",
            "messages[1].tool_calls.arguments",
            "is not valid JSON",
        ),
        (
            {"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER]},
            "messages",
            "messages[0].tool_calls",
            "only the assistant calls tools",
        ),
        ({"messages": [USER, ANSWER], "tools": "[1]"}, "messages", "tools[0]", "is a number (1)"),
        ({"conversations": [{"from": "human", "value": "q"}]}, "sharegpt", "conversations", "no assistant turn"),
        (
            {"conversations": [{"from": "function_call", "value": "f(x)"}]},
            "sharegpt",
            "conversations[0].value",
            "is not valid JSON",
        ),
        (
            {"conversations": [{"from": "humans", "value": "q"}]},
            "sharegpt",
            "conversations[0].from",
            "did you mean 'human'?",
        ),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, "alpaca", "history[0]", "a pair [question, answer]"),
        ({"instruction": "q", "output": "a", "input": 3}, "alpaca", "input", "a number (3)"),
        (
            {"messages": [USER, ANSWER], "tools": [{"name": "f"}, None]},
            "messages",
            "tools[1]",
            "is null",
        ),
        ({"prompt": "q", "completion": [ANSWER]}, "prompt_completion", None, "should both be text or both lists"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "prompt_completion", "completion", "no assistant turn"),
    ],
)
def test_faults_name_the_field(row: dict[str, Any], name: str, field: str | None, reason: str) -> None:
    where, why = fault(row, name)
    assert where == field
    assert reason in why


def test_one_bad_first_row_does_not_hide_the_format() -> None:
    good = {"instruction": "q", "output": "a"}
    assert known_format("auto", {}, raw({"instruction": "q", "ouput": "a"}, good), "d.jsonl").name == "alpaca"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "q", "answer": "a"}], r"question, answer.*Known.*\{prompt: question, completion: answer\}"),
        ([{"instruction": "q", "ouput": "a"}], "Did you mean 'output' for 'ouput'"),
        ([{"instruction": "q", "output": "a", "text": "t"}], "d.jsonl:1 fits more than one format, alpaca and text"),
        ([{"text": "t"}, {"prompt": "q", "completion": "a"}], r"text \(d.jsonl:1\) and prompt_\w+ \(d.jsonl:2\)"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b"}], "pairs for preference training"),
        ([{}], r"\(none\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_said(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        known_format("auto", {}, raw(*rows), "d.jsonl")


def test_fields_rename_and_misspelt_ones_are_refused() -> None:
    fields = {"prompt": "question", "completion": "answer"}
    assert convert({"question": "q", "answer": "a"}, "auto", fields) == Completion("q", "a")
    turns = {"messages": [{"who": "user", "says": "q"}, {"who": "assistant", "says": "a"}]}
    assert convert(turns, "messages", {"role": "who", "content": "says"}) == Dialog(
        (Message("user", "q"), Message("assistant", "a"))
    )
    with pytest.raises(DataError, match=r"does not have a field 'promt' \(did you mean 'prompt'\?\)"):
        known_format("prompt_completion", {"promt": "q"}, raw({}), "d.jsonl")


def test_fields_that_are_not_read_are_told() -> None:
    rows = raw({"id": 1, "instruction": "q", "inputs": "c", "output": "a"})
    known = known_format("auto", {}, rows, "d.jsonl")
    assert known == Known("alpaca", {}, detected=True)
    assert unused_columns(known, rows) == ["id", "inputs (did you mean 'input'?)"]


_NAMES = sorted(
    {name for format_ in FORMATS.values() for name in format_.names} | {"function", "name", "arguments", "type"}
)
_WORDS = st.sampled_from(
    ["user", "assistant", "human", "gpt", "function_call", "tool", "text", "q", "", "[]", "[{}]", "{"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), inner),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=5), st.sampled_from(sorted(FORMATS)))
def test_any_row_is_an_example_or_a_fault_and_nothing_else(values: dict[str, Any], name: str) -> None:
    try:
        known_format("auto", {}, raw(values), "d.jsonl")
    except DataError as error:
        assert str(error)
    try:
        example = to_example(values, Known(name, {}, detected=False))
    except RowFault as fault:
        assert fault.reason
    else:
        assert len(content_key(example)) == 32


def test_a_content_key_is_of_the_content() -> None:
    def key(values: dict[str, Any]) -> bytes:
        return content_key(convert(values))

    alpaca = {"instruction": "q", "output": "a"}
    messages = {"messages": [USER, ANSWER]}
    assert key(alpaca) == key({**alpaca, "input": ""}) == key(messages)
    others = [{**alpaca, "input": "c"}, {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, {"text": "qa"}]
    others += [{"prompt": "q", "completion": "a"}, {**messages, "tools": [{"name": "\ud800"}]}]
    assert len({key(values) for values in [alpaca, *others]}) == 6
