"""What the page sends when somebody preferred an answer: checked, and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.chat.openai_requests import RequestError, read_messages
from finetune.chat.preferences import VERDICTS, Given, count_preferences, keep_preference
from finetune.shapes import Message

_MORE: Mapping[str, type | tuple[type, ...]] = {"blind": bool, "temperature": (int, float)}
"""Further columns, and what they may be."""


def keep(body: object, pairs: Path, names: Sequence[str], system: str | None) -> dict[str, Any]:
    """Append {messages, answers: [{model, text}, {model, text}], verdict, blind, temperature} to the pairs or the ties.

    system: what stood before conversations without a system prompt of their own; it is kept with the row. Returns where
    it went and the counts. Raises RequestError and InputError.
    """
    if not isinstance(body, dict):
        raise RequestError(400, "the body should be a JSON object")
    if body.get("verdict") not in VERDICTS:
        raise RequestError(400, f"verdict should be one of {', '.join(VERDICTS)}", param="verdict")
    messages = read_messages(body.get("messages"))
    if system and messages and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    answers = body.get("answers")
    if not isinstance(answers, list) or len(answers) != 2 or not all(isinstance(each, dict) for each in answers):
        raise RequestError(400, "answers should be two objects with model and text", param="answers")
    given = []
    for each in answers:
        model, text = each.get("model"), each.get("text")
        if model not in names or not isinstance(text, str):
            raise RequestError(400, "answers should be two objects with model and text", param="answers")
        given.append(Given(model, text))
    more = {name: body[name] for name, kind in _MORE.items() if isinstance(body.get(name), kind)}
    path = keep_preference(pairs, messages, given[0], given[1], body["verdict"], more)
    return {"file": str(path), "kept": count_preferences(pairs)}
