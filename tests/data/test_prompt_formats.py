"""Rows to prompts: what of every format is asked, what is cut off, which columns stay."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.data.convert_prompts import prompt_fields, prompt_of, to_prompt
from finetune.data.fields import RowFault
from finetune.data.fitting import EXAMPLES, PROMPTS
from finetune.data.formats import known_format
from finetune.data.readers import RawRow
from finetune.errors import DataError
from finetune.shapes import Completion, Dialog, Message, Origin, ToolCall


def known(values, name="auto", fields=None, kind=PROMPTS):
    return known_format(name, fields or {}, [RawRow(values, Origin("d.jsonl", line=1))], "d.jsonl", kind)


def convert(values, name="auto", fields=None):
    return to_prompt(values, known(values, name, fields))


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


Q = Message("user", "q")


@pytest.mark.parametrize(
    ("values", "prompt", "columns"),
    [
        ({"prompt": "q"}, Completion("q", ""), {}),
        ({"prompt": "q", "answer": 3, "safety": True}, Completion("q", ""), {"answer": 3, "safety": True}),
        ({"prompt": "q", "system": "s"}, Dialog((Message("system", "s"), Q)), {}),
        ({"prompt": [turn("user", "q")], "id": 1}, Dialog((Q,)), {"id": 1}),
        ({"prompt": "q", "completion": "a"}, Completion("q", ""), {"answer": "a"}),
        ({"prompt": "q", "completion": "a", "answer": "b"}, Completion("q", ""), {"answer": "b"}),
        ({"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")]}, Dialog((Q,)), {"answer": "a"}),
        ({"messages": [turn("user", "q"), turn("assistant", "a")]}, Dialog((Q,)), {"answer": "a"}),
        ({"messages": [turn("user", "q")]}, Dialog((Q,)), {}),
        (
            {"messages": [turn("user", "q"), turn("assistant", "a", weight=0), turn("user", "q")]},
            Dialog((Q, Message("assistant", "a"), Q)),
            {},
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tag": "t"},
            Dialog((Q,)),
            {"tag": "t", "answer": "a"},
        ),
        (
            {"instruction": "q", "input": "i", "output": "a"},
            Dialog((Message("user", "q", context="i"),)),
            {"answer": "a"},
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            Completion("q", ""),
            {"chosen": "good", "rejected": "bad"},
        ),
    ],
)
def test_what_is_asked(values: dict[str, Any], prompt: Any, columns: dict[str, Any]) -> None:
    assert convert(values) == (prompt, columns)


def test_an_answer_after_a_tool_is_cut_and_the_call_stays() -> None:
    call = turn("assistant", "", tool_calls=[{"name": "f", "arguments": {"x": 1}}])
    values = {
        "messages": [turn("user", "q"), call, turn("tool", "1"), turn("assistant", "one")],
        "tools": [{"name": "f"}],
    }
    prompt, columns = convert(values)
    assert prompt == Dialog(
        (Q, Message("assistant", "", (ToolCall("f", {"x": 1}),)), Message("tool", "1")), ({"name": "f"},)
    )
    assert columns == {"answer": "one"}


def test_other_names_and_gsm8k() -> None:
    values = {"question": "q", "answer": "so\n#### 18"}
    assert convert(values, "prompt", {"prompt": "question"}) == (Completion("q", ""), {"answer": "so\n#### 18"})
    with pytest.raises(DataError, match=r"format: prompt, fields: \{prompt: question\}"):
        known(values)


def test_prompts_are_no_rows_for_sft() -> None:
    with pytest.raises(DataError, match="prompts without answers: stages that sample"):
        known({"prompt": "q", "id": 1}, kind=EXAMPLES)
    with pytest.raises(DataError, match="format prompt is for stages that sample"):
        known({"prompt": "q"}, "prompt", kind=EXAMPLES)
    with pytest.raises(DataError, match="format text is for sft stages; this one reads alpaca"):
        known({"text": "q"}, "text")


@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": 3}, "prompt", "should be text or a list of messages, is a number"),
        ({"prompt": [turn("user", "q"), turn("assistant", "a")]}, "prompt", "ends with the assistant's turn"),
        ({"prompt": [turn("system", "s"), turn("user", "q")], "system": "t"}, "system", "another in the messages"),
        ({"messages": [turn("system", "s"), turn("assistant", "a")]}, "messages", "ends with the system's turn"),
        ({"messages": [turn("assistant", "a")]}, "messages", "has no question"),
    ],
)
def test_what_is_wrong_with_a_row(values: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RowFault, match=reason) as caught:
        convert(values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "q"},
        {"prompt": [turn("system", "s"), turn("user", "q")]},
        {
            "prompt": [
                turn("user", "q"),
                turn("assistant", "", tool_calls=[{"name": "f", "arguments": {}}]),
                turn("tool", "1"),
            ],
            "tools": [{"name": "f"}],
        },
    ],
)
def test_prompts_are_written_as_they_are_read(values: dict[str, Any]) -> None:
    prompt, _ = convert(values)
    assert prompt_fields(prompt) == values and prompt_of(values) == prompt


def test_a_separate_input_is_kept_apart() -> None:
    prompt, _ = convert({"instruction": "q", "input": "i", "output": "a"})
    assert prompt_of(prompt_fields(prompt)) == prompt
