"""A row to a prompt: what is asked, without the last answer, and the row's other columns.

Rows are of any format of conversations that sft stages read, whose last answer is cut off, or of the format `prompt`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.data.convert import message_turns, sharegpt_turns, system_turn, to_example, tools_of
from finetune.data.fields import Record, RowFault, kind_of
from finetune.data.fitting import FORMATS, kind_of_turns
from finetune.data.formats import Known
from finetune.families.tools_as_text import with_context
from finetune.shapes import Completion, Dialog, Message, ToolCall

ANSWER = "answer"
"""The column under which a row's own last answer is offered, where no column has that name."""


def to_prompt(values: Mapping[str, Any], known: Known) -> tuple[Dialog | Completion, dict[str, Any]]:
    """The prompt, and the columns that the format does not read, with the last answer. Raises RowFault."""
    row = Record(values, known.columns)
    answer: str | None = None
    prompt: Dialog | Completion
    match known.name:
        case "prompt":
            prompt = _prompt(row)
        case "messages":
            prompt, answer = _cut(message_turns(row, "messages"), row, "messages")
        case "sharegpt":
            prompt, answer = _cut(sharegpt_turns(row, "conversations"), row, "conversations")
        case _:
            example = to_example(values, known)
            if isinstance(example, Dialog):
                prompt, answer = _cut(example.messages, row, FORMATS[known.name].needs[0])
            else:
                assert isinstance(example, Completion)  # plain text is no format of prompts
                prompt, answer = replace(example, completion=""), example.completion
    format_ = FORMATS[known.name]
    read = {row.column(name) for name in (*format_.needs, *format_.may)}
    columns = {str(name): value for name, value in values.items() if name not in read}
    if answer is not None:
        columns.setdefault(ANSWER, answer)
    return prompt, columns


def prompt_fields(prompt: Dialog | Completion) -> dict[str, Any]:
    """A prompt as JSON: a row of the format `prompt`, where only Alpaca's separate input has a field more."""
    if isinstance(prompt, Completion):
        return {"prompt": prompt.prompt}
    turns = message_fields([replace(message, context=None) for message in prompt.messages])
    for turn, message in zip(turns, prompt.messages, strict=True):
        if message.context is not None:
            turn["context"] = message.context
    return {"prompt": turns, **({"tools": [dict(tool) for tool in prompt.tools]} if prompt.tools else {})}


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt for people to read: its text, or its turns, each under its role unless it is the only one."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def prompt_of(fields: Mapping[str, Any]) -> Dialog | Completion:
    """The prompt that `prompt_fields` wrote."""
    if isinstance(fields["prompt"], str):
        return Completion(fields["prompt"], "")
    messages = tuple(
        Message(
            turn["role"],
            turn["content"],
            tuple(ToolCall(call["name"], call["arguments"]) for call in turn.get("tool_calls", ())),
            turn.get("context"),
        )
        for turn in fields["prompt"]
    )
    return Dialog(messages, tuple(fields.get("tools", ())))


def message_fields(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as a row of messages has them. Alpaca's separate input goes behind the question, after a blank line."""
    found = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": with_context(message)}
        if message.tool_calls:
            turn["tool_calls"] = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
        found.append(turn)
    return found


def _prompt(row: Record) -> Dialog | Completion:
    value = row.required("prompt")
    tools = tools_of(row)
    system = system_turn(row)
    if isinstance(value, str) and kind_of_turns(value, row.columns) != "messages":
        text = row.text("prompt")
        return Dialog((*system, Message("user", text)), tools) if system or tools else Completion(text, "")
    if not isinstance(value, (str, list, tuple)):
        raise RowFault(f"should be text or a list of messages, is {kind_of(value)}", row.path("prompt"))
    messages = message_turns(row, "prompt")
    if system and messages and messages[0].role == "system":
        raise RowFault("a system prompt here and another in the messages", row.path("system"))
    return _asked([*system, *messages], row, "prompt")


def _cut(messages: Sequence[Message], row: Record, name: str) -> tuple[Dialog, str | None]:
    """The conversation up to its last answer, and that answer, None where it ends with a question."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    answer = messages[-1].content if end < len(messages) else None
    return _asked(messages[:end], row, name), answer


def _asked(messages: Sequence[Message], row: Record, name: str) -> Dialog:
    if not messages or messages[-1].role not in ("user", "tool"):
        last = f"ends with the {messages[-1].role}'s turn" if messages else "has no question"
        raise RowFault(f"{last}: a prompt ends with the user's (or a tool's)", row.path(name))
    # Marks of what is trained belong to the answers: prompts that differ in nothing else are the same.
    return Dialog(tuple(replace(message, trained=None) for message in messages), tools_of(row))
