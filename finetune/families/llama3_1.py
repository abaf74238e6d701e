"""Llama 3.1 text, and by the same rules 3.2 and 3.3: Llama 3's headers, an ipython role for tool results, `<|eom_id|>`.

Meta has two sources and they disagree, so there are two templates of each; no conversation mixes them.

`llama3.1` (and 3.2, 3.3) follows meta-llama/llama-models, chat_format.py `ChatFormat`, the reference code:
- contents are NOT stripped; no system message is written unless there is one; no dates;
- a call of a function is `{"type": "function", "name": …, "parameters": …}` and <|eot_id|>; of Meta's built-in tools
  `brave_search.call(query="…")` and <|eom_id|>, of code_interpreter `<|python_tag|>code<|eom_id|>`. The prompt-format
  documents print <|python_tag|> before every built-in call and before JSON calls, and end those with <|eom_id|>; the
  reference code does not, and it is what is followed;
- functions offered to the model (`tools`) stand in a user message of their own before the first turn, with the
  wording of Meta's prompt-format document; built-in tools in the system message, after `Environment: ipython`.

`llama3.1-dated` (and 3.2, 3.3) follows the chat template on the hub, with which the instruct models are served:
- contents are stripped; there is always a system message, which begins with the cutting-knowledge date and a date of
  today. That date is fixed (`date`, 26 Jul 2024, the template's own default), in 3.2 too, whose hub template reads the
  clock: training data must not depend on the day;
- functions stand at the head of the first user message (`tools_in_user`) or in the system message; a call is
  `{"name": …, "parameters": …}`; one call a turn; with built-in tools offered, every call ends with <|eom_id|> and
  built-in ones are written `<|python_tag|>brave_search.call(query="…")`, code as above. 3.2 (1B, 3B) has none;
- a tool's result is written as JSON: text that begins with { or [ as it is, other text quoted.
It is chosen for a base that carries this template itself, so that training sees what servers send.

In both, loss is on the assistant's message after its header, through its stop token. The template says so too: the
two are tested against each other. A tool is built-in where it is named brave_search, wolfram_alpha or code_interpreter
and has no parameters of its own: `{"name": "brave_search"}`, `{"type": "code_interpreter"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from finetune.families.base import GENERATIONS, Family, RenderError, Span, is_trained
from finetune.families.llama3 import EOM, EOT, HEADER_TOKENS, PYTHON_TAG, header, message_spans
from finetune.families.tools_as_text import to_json, with_context
from finetune.shapes import Dialog, Message, ToolCall

BUILTIN_TOOLS = ("brave_search", "wolfram_alpha", "code_interpreter")
DATE = "26 Jul 2024"
Tool = Mapping[str, Any]


@dataclass(frozen=True)
class _Dated:
    date: str
    tools_in_user: bool
    has_builtin: bool


def _chat_format(
    calls: Literal["json", "function_tag"], family: Family, dialog: Dialog, add_generation_prompt: bool
) -> list[Span]:
    builtin, custom = split_tools(dialog.tools)
    spans = [Span(family.bos, False, special=True)]
    messages = dialog.messages
    system = messages[0] if messages[0].role == "system" else None
    if system or builtin:
        environment = [_environment(builtin)] if builtin else []
        said = [system.content] if system else []
        trained = system is not None and is_trained(system)
        spans += message_spans("system", "\n\n".join(environment + said), trained)
    if custom:
        spans += message_spans("user", _functions_by_document(custom), False)
    for message in messages[1:] if system else messages:
        trained = is_trained(message)
        spans += header("ipython" if message.role == "tool" else message.role)
        spans += _content(message, trained, calls)
        is_builtin = any(call.name in BUILTIN_TOOLS for call in message.tool_calls)
        spans.append(Span(EOM if is_builtin else EOT, trained, special=True))
    return [*spans, *header("assistant")] if add_generation_prompt else spans


def _content(message: Message, trained: bool, calls: Literal["json", "function_tag"]) -> list[Span]:
    """Words, context and calls, each a text of its own, as ChatFormat encodes them."""
    spans = []
    if any(call.name == "code_interpreter" for call in message.tool_calls):
        spans.append(Span(PYTHON_TAG, trained, special=True))
    spans.append(Span(message.content, trained, new_text=True))
    if message.context:
        spans += [Span("\n\n", trained, new_text=True), Span(message.context, trained, new_text=True)]
    for call in message.tool_calls:
        spans.append(Span(_call(call, calls), trained, new_text=True))
    return spans


def _call(call: ToolCall, calls: Literal["json", "function_tag"]) -> str:
    if call.name == "code_interpreter":
        return _code(call)
    if call.name in BUILTIN_TOOLS:
        return _builtin_call(call)
    if calls == "function_tag":
        return f"<function={call.name}>{to_json(call.arguments)}</function>"
    return f'{{"type": "function", "name": {to_json(call.name)}, "parameters": {to_json(call.arguments)}}}'


def _code(call: ToolCall) -> str:
    code = call.arguments.get("code")
    if not isinstance(code, str):
        raise RenderError("a call of code_interpreter needs its program as the text argument 'code'")
    return code


def _builtin_call(call: ToolCall) -> str:
    arguments = ", ".join(f'{name}="{value}"' for name, value in call.arguments.items())
    return f"{call.name}.call({arguments})"


def _named(builtin: tuple[str, ...]) -> str:
    """The built-in tools that a system message lists; `Environment: ipython` alone offers the code interpreter."""
    return ", ".join(name for name in builtin if name != "code_interpreter")


def _environment(builtin: tuple[str, ...]) -> str:
    return "Environment: ipython" + (f"\nTools: {named}" if (named := _named(builtin)) else "")


def _functions_by_document(tools: list[Tool]) -> str:
    listed = "\n\n".join(json.dumps(tool, indent=4, ensure_ascii=False) for tool in tools)
    return (
        "Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\n"
        f"Here is a list of functions in JSON format:\n{listed}\n\nReturn function calls in JSON format."
    )


def _dated(style: _Dated, family: Family, dialog: Dialog, add_generation_prompt: bool) -> list[Span]:
    builtin, custom = split_tools(dialog.tools)
    if builtin and not style.has_builtin:
        raise RenderError(
            f"{family.template} has no form for built-in tools ({', '.join(builtin)}): Llama 3.2 1B and 3B were not "
            "trained on them; describe the function with its parameters instead"
        )
    messages = list(dialog.messages)
    system = messages.pop(0) if messages[0].role == "system" else None
    text = "Environment: ipython\n" if builtin or custom else ""
    if builtin:
        text += f"Tools: {_named(builtin)}\n\n"
    text += f"Cutting Knowledge Date: December 2023\nToday Date: {style.date}\n\n"
    if custom and not style.tools_in_user:
        text += _IN_SYSTEM + _listed(custom)
    if system:
        text += system.content.strip()
    spans = [Span(family.bos, False, special=True)]
    spans += message_spans("system", text, system is not None and is_trained(system))
    for index, message in enumerate(messages):
        trained = is_trained(message)
        if message.role == "tool":
            spans += message_spans("ipython", _as_json(message.content), trained)
            continue
        content = with_context(message).strip()
        if index == 0 and custom and style.tools_in_user:
            if message.role != "user":
                raise RenderError("tools stand in the first user message, but the conversation does not start with one")
            content = _IN_USER + _listed(custom) + content
        if message.tool_calls:
            spans += header(message.role)
            spans += _dated_call(message, content, trained, builtin)
        else:
            spans += message_spans(message.role, content, trained)
    return [*spans, *header("assistant")] if add_generation_prompt else spans


def _dated_call(message: Message, content: str, trained: bool, builtin: tuple[str, ...]) -> list[Span]:
    if len(message.tool_calls) > 1:
        raise RenderError(
            f"an assistant turn has {len(message.tool_calls)} tool calls, but the model's own template has a form for "
            "one a turn: split them into turns, each with its result"
        )
    call = message.tool_calls[0]
    spans = [Span(content, trained, new_text=True)]
    if call.name in builtin:
        words = _code(call) if call.name == "code_interpreter" else _builtin_call(call)
        spans += [Span(PYTHON_TAG, trained, special=True), Span(words, trained)]
    else:
        words = f'{{"name": "{call.name}", "parameters": {to_json(call.arguments)}}}'
        spans.append(Span(words, trained, new_text=not content))
    return [*spans, Span(EOM if builtin else EOT, trained, special=True)]


_HOW = (
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)
_IN_USER = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments "
    f"that best answers the given prompt.\n\n{_HOW}"
)
_IN_SYSTEM = (
    "You have access to the following functions. To call a function, please respond with JSON for a function call."
    f"{_HOW}"
)


def _listed(tools: list[Tool]) -> str:
    return "".join(f"{json.dumps(tool, indent=4, ensure_ascii=False)}\n\n" for tool in tools)


def _as_json(content: str) -> str:
    return content if content[:1] in ("{", "[") else to_json(content)


def split_tools(tools: tuple[Tool, ...]) -> tuple[tuple[str, ...], list[Tool]]:
    """(names of the built-in tools, the functions described by the row)."""
    builtin: list[str] = []
    custom: list[Tool] = []
    for tool in tools:
        function = tool.get("function", tool)
        name = function.get("name", tool.get("type"))
        if name in BUILTIN_TOOLS and "parameters" not in function:
            builtin.append(name)
        else:
            custom.append(tool)
    return tuple(builtin), custom


def chat_format(generation: str, *, calls: Literal["json", "function_tag"] = "json") -> Family:
    """The template of Meta's reference code. calls: how a function call is written; Meta's code knows both."""
    facts = GENERATIONS[generation]
    return Family(
        template=generation,
        generation=generation,
        licence=facts.licence,
        bos=facts.bos,
        end=facts.end,
        stop=(EOT, EOM),
        eos=(facts.end, EOM, EOT),
        pads=facts.pads,
        needs=(facts.bos, facts.end, *HEADER_TOKENS, EOT, EOM, PYTHON_TAG),
        jinja=("llama3_1.jinja",),
        about="Meta's reference format: headers, <|eot_id|>, tools by ipython; no dates",
        turns=partial(_chat_format, calls),
    )


def dated(generation: str, *, date: str = DATE, tools_in_user: bool = True) -> Family:
    """The template of the hub's instruct models. date: of "Today Date"; give Jinja's `date_string` the same."""
    style = _Dated(date, tools_in_user, has_builtin=generation != "llama3.2")
    return replace(
        chat_format(generation),
        template=f"{generation}-dated",
        jinja=("llama3_2_dated.jinja", "llama3_1_dated.jinja") if not style.has_builtin else ("llama3_1_dated.jinja",),
        about="the hub template of the instruct models: a system message with dates, contents stripped",
        turns=partial(_dated, style),
    )


LLAMA3_1 = chat_format("llama3.1")
LLAMA3_1_DATED = dated("llama3.1")
