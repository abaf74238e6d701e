"""The recipe as YAML with its comments: where each value came from, what changed, what was left out and why."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.migrate.account import Account, Fate, Told
from finetune.recipe.positions import KeyPath, read_yaml
from finetune.recipe.schema import Recipe

_WIDTH = 120
_COLUMN = 36
"""Comments begin here where the value leaves room."""
_STAGE = (
    "kind", "start_from", "policy", "reward", "prompts", "data", "held_out", "too_long", "duplicates", "loss_on",
    "loss", "beta",
)  # fmt: skip
_MODEL = ("base", "revision", "load_in", "compute", "template", "system", "max_length")


def render(recipe: Mapping[str, Any], comments: Mapping[KeyPath, str], account: Account, head: str) -> str:
    """The whole file. head: its first comment."""
    lines = [*_wrapped(head, "# ", "# ")]
    if decide := account.of(Fate.DECIDE):
        lines += ["#", "# To be decided by you:", *_list(decide)]
    lines.append("")
    last = "seed" if "seed" in recipe else "name"
    for key in (name for name in Recipe.model_fields if recipe.get(name) not in (None, {})):
        value = recipe[key]
        lines += _entry(key, value, (key,), comments, "")
        lines += [""] if isinstance(value, Mapping) or key == last else []
    lines += _left(account)
    return "\n".join(lines).rstrip() + "\n"


def _left(account: Account) -> list[str]:
    lines: list[str] = []
    if changed := account.of(Fate.CHANGED):
        lines += [f"# Changed in meaning or value from {account.tool}:", *_list(changed)]
    if left := account.of(Fate.LEFT_OUT):
        lines += ["# Left out, and why:", *_list(_by_reason(left))]
    if empty := account.of(Fate.EMPTY):
        words = ", ".join(told.key if told.value in ("", "null") else f"{told.key}: {told.value}" for told in empty)
        lines += ["# Empty or off there, so that there is nothing to carry:", *_wrapped(words, "#   ", "#   ")]
    if carried := account.of(Fate.CARRIED):
        words = ", ".join(f"{told.key}: {told.value}" if "{" in told.value else told.key for told in carried)
        lines += ["# Carried over:", *_wrapped(words, "#   ", "#   ")]
    return lines


def _list(entries: list[Told]) -> Iterator[str]:
    for told in entries:
        said = f"{told.key}: {told.value}" if told.value else told.key
        text = f"{said}  {told.note}" if said and told.note else said or told.note
        yield from _wrapped(text, "#   - ", "#     ")


def _by_reason(entries: list[Told]) -> list[Told]:
    """Keys that are left out for the same reason, told together."""
    groups: dict[str, list[Told]] = {}
    for told in entries:
        groups.setdefault(told.note, []).append(told)
    return [
        Told(", ".join(f"{told.key}: {told.value}" for told in group), "", Fate.LEFT_OUT, note)
        for note, group in groups.items()
    ]


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]


def _entry(
    key: str, value: Any, path: KeyPath, comments: Mapping[KeyPath, str], indent: str, dash: str = ""
) -> list[str]:
    """`key: value` with its comment beside it, above where it is long. dash: "- " before an entry's first key."""
    comment = comments.get(path, "")
    inside = indent + " " * len(dash)
    start = f"{indent}{dash}{key}:"
    if isinstance(value, Mapping) and value and path[-1] != "fields":
        lines = _beside(start, comment)
        for inner, entry in _sorted(value, path):
            lines += _entry(inner, entry, (*path, inner), comments, f"{inside}  ")
        return lines
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        lines = _beside(start, comment)
        for index, item in enumerate(value):
            for place, (inner, entry) in enumerate(item.items()):
                margin, mark = (f"{inside}  ", "- ") if place == 0 else (f"{inside}    ", "")
                lines += _entry(inner, entry, (*path, index, inner), comments, margin, mark)
        return lines
    return _beside(f"{start} {flow(value)}", comment)


def _sorted(section: Mapping[str, Any], path: KeyPath) -> list[tuple[str, Any]]:
    order = _MODEL if path == ("model",) else _STAGE if len(path) == 2 and path[0] == "stages" else ()
    places = {key: place for place, key in enumerate(order)}
    last = {"train": 1000}
    keys = sorted(section, key=lambda key: last.get(key, places.get(key, 500)) if order else 0)
    return [(key, section[key]) for key in keys]


def _beside(text: str, comment: str) -> list[str]:
    if not comment:
        return [text]
    comment = " ".join(comment.split())
    line = f"{text:<{_COLUMN}}# {comment}" if len(text) < _COLUMN else f"{text}  # {comment}"
    if len(line) <= _WIDTH:
        return [line]
    indent = text[: len(text) - len(text.lstrip())]
    return [*_wrapped(comment, f"{indent}# ", f"{indent}# "), text]


def flow(value: Any) -> str:
    """A value on one line, that YAML reads back as it is."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if math.isfinite(value):
            return _number(value)
        case Mapping():
            return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(flow(entry) for entry in value) + "]"
        case str():
            plain = f"[{value}, {{a: {value}}}] # end"
            return value if read_yaml(plain).value == [value, {"a": value}] else json.dumps(value, ensure_ascii=False)
    return str(value)


def _number(value: float) -> str:
    """3 for 3.0; and 1.0e-05, not 1e-05: other readers take that for text."""
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    text = repr(value)
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa}.0e{exponent}" if exponent and "." not in mantissa else text
