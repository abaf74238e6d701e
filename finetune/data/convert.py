"""A row of each format to an Example. Anything that is not what the format says is a RowFault naming the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from finetune.data.fields import Record, RowFault, kind_of, parse_json
from finetune.data.formats import Known
from finetune.recipe.words import did_you_mean
from finetune.shapes import Completion, Dialog, Example, Message, Role, Text, ToolCall

_SHAREGPT_ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "ipython": "tool",
}


def to_example(values: Mapping[str, Any], known: Known) -> Example:
    """Raises RowFault."""
    row = Record(values, known.columns)
    match known.name:
        case "alpaca":
            return _alpaca(row)
        case "sharegpt":
            return _sharegpt(row)
        case "messages":
            return _dialog(message_turns(row, "messages"), row, "messages")
        case "prompt_completion":
            return _prompt_completion(row)
        case _:
            return Text(row.text("text"))


def _alpaca(row: Record) -> Dialog:
    messages = system_turn(row)
    for index, pair in enumerate(row.items("history", required=False)):
        at = f"{row.path('history')}[{index}]"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowFault("should be a pair [question, answer]", at)
        turn = Record({"0": pair[0], "1": pair[1]}, {}, f"{at}.")
        messages += [Message("user", turn.text("0")), Message("assistant", turn.text("1"))]
    messages += [
        Message("user", row.text("instruction"), context=row.optional_text("input")),
        Message("assistant", row.text("output")),
    ]
    return Dialog(tuple(messages))


def _sharegpt(row: Record) -> Dialog:
    return _dialog(sharegpt_turns(row, "conversations"), row, "conversations")


def sharegpt_turns(row: Record, name: str) -> list[Message]:
    """The row's system prompt and its turns of `from` and `value`. Raises RowFault."""
    messages = system_turn(row)
    for turn in row.children(name):
        speaker = turn.text("from")
        role = _role(speaker, _SHAREGPT_ROLES, turn.path("from"))
        if speaker == "function_call":
            calls = parse_json(turn.text("value"), turn.path("value"))
            calls = calls if isinstance(calls, list) else [calls]
            if not calls:
                raise RowFault("has no call", turn.path("value"))
            messages.append(Message(role, "", tuple(_tool_call(call, turn.path("value")) for call in calls)))
        elif role == "system":
            if messages and row.optional_text("system"):
                raise RowFault("a system prompt here and another in the field 'system'", turn.path("from"))
            messages += [Message(role, content)] if (content := turn.optional_text("value")) else []
        elif role == "tool":  # a tool may have nothing to say
            messages.append(Message(role, turn.checked(turn.required("value"), "value")))
        else:
            messages.append(Message(role, turn.text("value")))
    return messages


def _prompt_completion(row: Record) -> Example:
    prompt, completion = row.required("prompt"), row.required("completion")
    as_list = [isinstance(value, (list, tuple)) for value in (prompt, completion)]
    if as_list == [False, False]:
        return Completion(row.text("prompt"), row.text("completion"))
    if as_list != [True, True]:
        raise RowFault(
            f"prompt and completion should both be text or both lists of messages; prompt is {kind_of(prompt)}, "
            f"completion is {kind_of(completion)}"
        )
    asked = [
        Message(m.role, m.content, m.tool_calls, trained=False if m.role == "assistant" else None)
        for m in message_turns(row, "prompt")
    ]
    return _dialog(asked + message_turns(row, "completion"), row, "completion", answered=len(asked))


def message_turns(row: Record, name: str) -> list[Message]:
    """A field's turns of `role` and `content`; blank system prompts are left out. Raises RowFault."""
    found = []
    for turn in row.children(name):
        role = _role(turn.text("role"), _ROLES, turn.path("role"))
        calls = tuple(_tool_call(call, turn.path("tool_calls")) for call in turn.items("tool_calls", required=False))
        if calls and role != "assistant":
            raise RowFault(f"only the assistant calls tools, this is the {role}'s turn", turn.path("tool_calls"))
        content = _content(turn, may_be_blank=bool(calls) or role in ("system", "tool"))
        if role != "system" or content.strip():
            found.append(Message(role, content, calls, trained=_weight(turn, role)))
    return found


def _content(turn: Record, *, may_be_blank: bool) -> str:
    """Text, or a list of text parts as chat services write them."""
    value = turn.get("content") if may_be_blank else turn.required("content")
    if value is None and may_be_blank:
        return ""
    if isinstance(value, (list, tuple)):
        at, value = turn.path("content"), list(value)
        for index, part in enumerate(value):
            if not isinstance(part, Mapping):
                raise RowFault(f"should be an object, is {kind_of(part)}", f"{at}[{index}]")
            if part.get("type", "text") != "text":
                raise RowFault(f"a part of type '{part['type']}': only text is trained here", f"{at}[{index}]")
        value = "".join(
            Record(part, {}, f"{at}[{i}].").checked(part.get("text"), "text") for i, part in enumerate(value)
        )
    text = turn.checked(value, "content")
    if not text.strip() and not may_be_blank:
        raise RowFault("is blank" if text else "is empty", turn.path("content"))
    return text


def _weight(turn: Record, role: Role) -> bool | None:
    """OpenAI's `weight` of an assistant turn: 0 = not trained."""
    weight = turn.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowFault(f"should be 0 or 1, is {weight!r}", turn.path("weight"))
    if role != "assistant":
        raise RowFault(f"only an assistant turn has a weight, this is the {role}'s turn", turn.path("weight"))
    return False if weight == 0 else None


def _tool_call(call: Any, at: str) -> ToolCall:
    """{name, arguments}, or OpenAI's {type: function, function: {name, arguments}}; arguments an object or its JSON."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if not isinstance(call, Mapping):
        raise RowFault(f"a call should be an object with name and arguments, is {kind_of(call)}", at)
    record = Record(call, {}, f"{at}.")
    arguments = record.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments, record.path("arguments")) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowFault(f"should be an object, is {kind_of(arguments)}", record.path("arguments"))
    return ToolCall(record.text("name"), dict(arguments))


def system_turn(row: Record) -> list[Message]:
    """The row's own system prompt, if it has one, as the conversation's first message."""
    system = row.optional_text("system")
    return [Message("system", system)] if system else []


def _role(word: str, roles: Mapping[str, Role], path: str) -> Role:
    if word in roles:
        return roles[word]
    hint = did_you_mean(word, roles) or f"known are {', '.join(roles)}"
    raise RowFault(f"unknown role '{word}' ({hint})", path)


def _dialog(messages: list[Message], row: Record, name: str, *, answered: int = 0) -> Dialog:
    """answered: from this message on there must be an answer to train on."""
    if not any(message.role == "assistant" for message in messages[answered:]):
        raise RowFault("has no assistant turn, so there is nothing to train on", row.path(name))
    return Dialog(tuple(messages), tools_of(row))


def tools_of(row: Record) -> tuple[Mapping[str, Any], ...]:
    """The row's descriptions of tools. Raises RowFault."""
    tools = row.items("tools", required=False)
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RowFault(
                f"should be an object that describes a tool, is {kind_of(tool)}",
                f"{row.path('tools')}[{index}]",
            )
    return tuple(cast(list[Mapping[str, Any]], tools))
