"""As much of Go's text/template as our Modelfiles use: range, if, else if, else, end, variables, eq ne gt len slice or.

Checked against Go itself where `go` is installed (test_ollama.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'"[^"]*"|[()]|[^\s()"]+')


def render(template: str, data: dict[str, Any]) -> str:
    """data: System, Prompt, Messages (each with Role and Content)."""
    nodes = list(_lex(template))
    out: list[str] = []
    end = _run(nodes, 0, {"$": data}, data, out)
    assert end == len(nodes), "a stray end"
    return "".join(out)


def _lex(template: str) -> Iterator[tuple[str, str]]:
    at, strip = 0, False
    for found in _ACTION.finditer(template):
        text = template[at : found.start()]
        text = text.lstrip() if strip else text
        yield "text", text.rstrip() if found[1] else text
        yield "do", found[2].strip()
        at, strip = found.end(), bool(found[3])
    yield "text", template[at:].lstrip() if strip else template[at:]


def _run(nodes: list, at: int, names: dict, dot: Any, out: list[str] | None) -> int:
    """Run until the matching end or else; out None = skip. Returns the place of that end."""
    while at < len(nodes):
        kind, text = nodes[at]
        word = text.split(" ", 1)[0] if kind == "do" else ""
        if kind == "text":
            if out is not None:
                out.append(text)
        elif word in ("end", "else"):
            return at
        elif word == "range":
            index, item, of = re.fullmatch(r"range (\$\w+), (\$\w+) := (.*)", text).groups()
            after = _run(nodes, at + 1, names, dot, None)
            for i, value in enumerate(_value(of, names, dot) if out is not None else []):
                # Go: a variable that is set inside is the one declared outside; new ones end with their block.
                inner = _Scope({index: i, item: value}, names)
                _run(nodes, at + 1, inner, value, out)
            at = after
        elif word == "if":
            at = _if(nodes, at, text[3:], names, dot, out)
        elif match := re.fullmatch(r"(\$\w+) (:?=) (.*)", text):
            if out is not None:
                value = _value(match[3], names, dot)
                names.declare(match[1], value) if isinstance(names, _Scope) and match[2] == ":=" else _set(
                    names, match[1], value
                )
        elif out is not None:
            out.append(str(_value(text, names, dot)))
        at += 1
    return at


def _if(nodes: list, at: int, condition: str, names: dict, dot: Any, out: list[str] | None) -> int:
    done = out is None
    while True:
        holds = not done and bool(_value(condition, names, dot))
        at = _run(nodes, at + 1, names, dot, out if holds else None)
        done = done or holds
        text = nodes[at][1]
        if text == "end":
            return at
        condition = text.removeprefix("else if ") if text.startswith("else if ") else "true"


class _Scope(dict):
    def __init__(self, own: dict, above: dict) -> None:
        super().__init__(own)
        self.above = above

    def __missing__(self, name: str) -> Any:
        return self.above[name]

    def declare(self, name: str, value: Any) -> None:
        self[name] = value


def _set(names: dict, name: str, value: Any) -> None:
    while isinstance(names, _Scope) and name not in names:
        names = names.above
    names[name] = value


def _value(text: str, names: dict, dot: Any) -> Any:
    tokens = _TOKEN.findall(text)
    value, rest = _call(tokens, names, dot)
    assert not rest, text
    return value


def _call(tokens: list[str], names: dict, dot: Any) -> tuple[Any, list[str]]:
    head, *rest = tokens
    if head not in ("eq", "ne", "gt", "len", "slice", "or"):
        return _operand(tokens, names, dot)
    arguments = []
    while rest and rest[0] != ")":
        value, rest = _operand(rest, names, dot)
        arguments.append(value)
    a, *b = arguments
    results = {
        "eq": lambda: a == b[0],
        "ne": lambda: a != b[0],
        "gt": lambda: a > b[0],
        "len": lambda: len(a),
        "slice": lambda: a[b[0] :],
        "or": lambda: next((value for value in arguments if value), arguments[-1]),
    }
    return results[head](), rest


def _operand(tokens: list[str], names: dict, dot: Any) -> tuple[Any, list[str]]:
    head, *rest = tokens
    if head == "(":
        value, rest = _call(rest, names, dot)
        assert rest[0] == ")"
        return value, rest[1:]
    if head.startswith('"'):
        return head[1:-1], rest
    if head in ("true", "false"):
        return head == "true", rest
    if head.isdigit():
        return int(head), rest
    name, *fields = head.split(".")
    value = dot if name == "" else names[name]
    for field in fields:
        value = value.get(field, "")
    return value, rest
