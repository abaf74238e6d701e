"""Tools for the generations that Meta published no tool format for: LLaMA 1, Llama 2, Vicuna, Alpaca, Llama 3.0.

One convention of ours, in plain text, the same for all of them (`tools_as_text.jinja` is its template):
- the functions stand after the system prompt, one JSON object a line, with one sentence on how to call them;
- a call is the assistant's answer `{"name": …, "parameters": {…}}`, after its words if it has any;
- results come back as the next user turn, `Function result:` and the text; several results share one turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.shapes import Dialog, Message, ToolCall


def to_json(value: Any) -> str:
    """JSON as chat templates write it (their `tojson`): non-ASCII letters stay, keys keep their order."""
    return json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False)


def tools_text(tools: tuple[Mapping[str, Any], ...]) -> str:
    """What the system prompt says about the functions; empty without any."""
    if not tools:
        return ""
    listed = "\n".join(to_json(tool) for tool in tools)
    return (
        f"You can call these functions:\n{listed}\n\n"
        'To call one, answer with JSON only: {"name": function name, "parameters": {argument name: value}}'
    )


def with_context(message: Message) -> str:
    """A message's words, its separate context after a blank line."""
    return f"{message.content}\n\n{message.context}" if message.context else message.content


def call_text(call: ToolCall) -> str:
    return f'{{"name": {to_json(call.name)}, "parameters": {to_json(call.arguments)}}}'


def as_text(dialog: Dialog) -> tuple[str | None, str, list[Message]]:
    """(the row's own system prompt or None, what to say about tools or "", turns of only user and assistant).

    `context` is left on its message: Alpaca has a place for it.
    """
    system: str | None = None
    turns: list[Message] = []
    after_tool = False
    for message in dialog.messages:
        if message.role == "system":
            system = message.content
        elif message.role == "tool" and after_tool:
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\nFunction result:\n{message.content}")
        elif message.role == "tool":
            turns.append(replace(message, role="user", content=f"Function result:\n{message.content}"))
        elif message.tool_calls:
            said = [message.content] if message.content else []
            content = "\n".join([*said, *map(call_text, message.tool_calls)])
            turns.append(replace(message, content=content, tool_calls=()))
        else:
            turns.append(message)
        after_tool = message.role == "tool"
    return system, tools_text(dialog.tools), turns


def system_text(system: str | None, tools: str) -> str | None:
    """System prompt and tools in one; None where there is neither."""
    parts = [part for part in (system, tools) if part]
    return "\n\n".join(parts) if parts else system
