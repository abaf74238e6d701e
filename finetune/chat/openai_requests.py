"""Requests as OpenAI's chat and completions endpoints take them, read strictly: what would change the answer and is not
served is refused, what would not change it is accepted and not used, what nobody knows is refused.

Source: OpenAI's API reference, chat/completions and completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.chat.desk import new_seed
from finetune.chat.model import Answering, Asked
from finetune.shapes import Completion, Dialog, Message, Role, Text

MOST_SAMPLES = 8
MOST_PROMPTS = 16
MOST_STOPS = 4
_ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_IGNORED = {
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prediction",
}  # fmt: skip
"""Parameters that do not change the answer."""
_UNSERVED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
}
"""Parameters that are not served, and the values at which they ask for nothing."""
_SERVED = {
    "model", "messages", "prompt", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "n", "seed",
    "stop", "stream", "stream_options",
}  # fmt: skip


class RequestError(Exception):
    """What an OpenAI client is told: status, message, type, and where they help param and code."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Wanted:
    """A request that was read. asked: one, or several prompts of a completion. count_usage: in a stream, too."""

    model: str
    asked: tuple[Asked, ...]
    settings: Answering
    stops: tuple[str, ...]
    stream: bool
    count_usage: bool


def read_chat(body: object, names: Sequence[str], most_tokens: int, is_chat: bool) -> Wanted:
    """A chat completion. most_tokens: of an answer, and what it may have where nothing is said. Raises RequestError."""
    fields = _fields(body, "messages")
    messages = read_messages(fields.get("messages"))
    asked: Asked = Dialog(messages)
    if not is_chat:
        if len(messages) != 1:
            raise _bad(
                "the template of these models has no form for conversations: send one user message, or use "
                "/v1/completions",
                "messages",
            )
        asked = Completion(messages[0].content, "")
    count = fields.get("max_completion_tokens")
    name = "max_tokens" if count is None else "max_completion_tokens"
    return _wanted(fields, names, (asked,), _whole(fields, name, most_tokens, 1, None), most_tokens)


def read_completion(body: object, names: Sequence[str], most_tokens: int) -> Wanted:
    """A completion of raw text. Raises RequestError."""
    fields = _fields(body, "prompt")
    prompt = fields.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise _bad("prompt should be text or a list of texts (lists of token ids are not served)", "prompt")
    if len(prompts) > MOST_PROMPTS:
        raise _bad(f"prompt holds {len(prompts)} texts, {MOST_PROMPTS} at most", "prompt")
    count = _whole(fields, "max_tokens", 16, 1, None)  # OpenAI's default
    return _wanted(fields, names, tuple(Text(each) for each in prompts), count, most_tokens)


def _wanted(fields: Mapping[str, Any], names: Sequence[str], asked: tuple[Asked, ...], count: int, most: int) -> Wanted:
    stream = _flag(fields, "stream")
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise _bad("stream_options should be {include_usage: true or false}", "stream_options")
    settings = Answering(
        temperature=_number(fields, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(fields, "top_p", 1.0, 0.0, 1.0) or 1e-9,  # 0: the most probable word alone
        top_k=_whole(fields, "top_k", 0, 0, None),
        max_new_tokens=min(count, most),
        samples=_whole(fields, "n", 1, 1, MOST_SAMPLES),
        seed=new_seed() if fields.get("seed") is None else _whole(fields, "seed", 0, -(2**63), 2**63 - 1),
    )
    return Wanted(_model(fields, names), asked, settings, _stops(fields), stream, _flag(options, "include_usage"))


def _fields(body: object, own: str) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise _bad("the body should be a JSON object")
    other = {"messages": "prompt", "prompt": "messages"}[own]
    for name, value in body.items():
        if name in _UNSERVED:
            if value not in _UNSERVED[name]:
                raise _bad(f"{name} is not served here", name, "unsupported_parameter")
        elif name not in _SERVED | _IGNORED or name == other:
            raise _bad(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    if own not in body:
        raise _bad(f"you must provide {own}", own, "missing_required_parameter")
    return body


def _model(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise _bad("you must provide a model parameter", "model", "missing_required_parameter")
    return known_model(model, names)


def known_model(model: str, names: Sequence[str]) -> str:
    if model not in names:
        raise RequestError(
            404,
            f"The model '{model}' does not exist here; there are {', '.join(names)}",
            param="model",
            code="model_not_found",
        )
    return model


def read_messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _bad("messages should be a list of at least one message", "messages")
    found = []
    for index, message in enumerate(value):
        at = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _bad(f"{at} should be an object with role and content", at)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise _bad(f"{at}.role should be system, developer, user or assistant", f"{at}.role")
        if message.get("tool_calls") or message.get("function_call"):
            raise _bad("calls of tools are not served here", at, "unsupported_parameter")
        found.append(Message(_ROLES[role], _content(message.get("content"), f"{at}.content")))
    return tuple(message for message in found if message.role != "system" or message.content.strip())


def _content(value: object, at: str) -> str:
    """Text, or a list of text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _bad(f"{at} should be text or a list of text parts", at)
    texts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _bad(f"{at}[{index}] should be a part of type text: nothing else is served here", f"{at}[{index}]")
        texts.append(part["text"])
    return "".join(texts)


def _stops(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops):
        raise _bad("stop should be text or a list of texts, none of them empty", "stop")
    if len(stops) > MOST_STOPS:
        raise _bad(f"stop holds {len(stops)} texts, {MOST_STOPS} at most", "stop")
    return tuple(stops)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _bad(f"{name} should be true or false", name)


def _number(fields: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(f"{name} should be a number", name)
    if not least <= value <= most:  # of any size: an integer may have no float
        raise _bad(f"{name} should be from {least:g} to {most:g}, is {value!s:.20}", name)
    return float(value)


def _whole(fields: Mapping[str, Any], name: str, default: int, least: int, most: int | None) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _bad(f"{name} should be a whole number", name)
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise _bad(f"{name} should be {limits}", name)
    return value


def _bad(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    return RequestError(400, message, param=param, code=code)
