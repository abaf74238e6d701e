"""Plain words for what a key may hold and for what was found instead; shared by the messages and the reference."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

NONE = type(None)


def unwrap(annotation: Any) -> tuple[Any, list[Any]]:
    """The type inside Annotated[...] and its constraints (annotated_types, pydantic), flattened."""
    constraints: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        for extra in extras:
            constraints += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    return annotation, constraints


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union without None; one element where there is no choice."""
    inner, _ = unwrap(annotation)
    if get_origin(inner) in (Union, types.UnionType):
        return tuple(member for member in get_args(inner) if member is not NONE)
    return (annotation,)


def alternatives(annotation: Any) -> list[Any]:
    """The bare types of a union, and of the unions in it."""
    choices = members(annotation)
    if len(choices) == 1 and choices[0] is annotation:
        return [unwrap(annotation)[0]]
    return [bare for choice in choices for bare in alternatives(choice)]


def kinds_of(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections among the alternatives that differ by their `kind`: kind → section."""
    sections = [choice for choice in alternatives(annotation) if is_section(choice) and "kind" in choice.model_fields]
    return {get_args(section.model_fields["kind"].annotation)[0]: section for section in sections}


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def describe(annotation: Any) -> str:
    """What a key may hold: "a whole number of at least 1", "one of nf4, int8, bf16, fp32", "text or null"."""
    inner, constraints = unwrap(annotation)
    if kinds := kinds_of(annotation):
        return f"a section of kind {', '.join(kinds)}" + (" or null" if NONE in get_args(inner) else "")
    if get_origin(inner) in (Union, types.UnionType):
        words = [describe(member) for member in members(inner)]
        if NONE in get_args(inner):
            words.append("null")
        return " or ".join(dict.fromkeys(words))
    origin, arguments = get_origin(inner), get_args(inner)
    if origin is Literal:
        return arguments[0] if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if inner is bool:
        return "true or false"
    if inner in (int, float):
        return f"a {'whole ' if inner is int else ''}number{_bounds(constraints)}"
    if inner is str:
        if any(getattr(extra, "pattern", None) for extra in constraints):
            return "a name of up to 64 letters, digits, '.', '_' and '-'"
        return "text"
    if origin is tuple:
        inside = {describe(argument) for argument in arguments}
        return f"a list of {len(arguments)}, each {' or '.join(sorted(inside))}"
    if origin is list:
        entry = "a section" if is_section(unwrap(arguments[0])[0]) else describe(arguments[0])
        least = next((constraint.min_length for constraint in constraints if _is_least(constraint)), 0)
        if not least:
            return f"a list, each entry {entry}"
        return f"a list of at least {'one entry' if least == 1 else f'{least} entries'}, each {entry}"
    if origin is dict and not any(is_section(member) for member in members(arguments[1])):
        return f"a section, each value {describe(arguments[1])}"
    return "a section"


def describe_value(value: Any) -> str:
    """What stands in the file: "text 'abc'", "5", "an empty list", "a section with key, other"."""
    match value:
        case None:
            return "nothing (null)"
        case bool():
            return str(value).lower()
        case "":
            return "empty text"
        case str():
            return f"text '{value if len(value) <= 60 else value[:57] + '...'}'"
        case Mapping():
            return f"a section with {', '.join(map(str, list(value)[:5]))}" if value else "an empty section"
        case Sequence():
            return f"a list of {len(value)}" if value else "an empty list"
    return f"{value}"


def suggest(word: str, options: Iterable[str], closeness: float = 0.6) -> str | None:
    """The option that was probably meant, or None."""
    by_plain = {_plain(option): option for option in options}
    close = difflib.get_close_matches(_plain(word), by_plain, n=1, cutoff=closeness)
    return by_plain[close[0]] if close else None


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    meant = suggest(word, options)
    return None if meant is None else f"did you mean '{meant}'?"


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _is_least(constraint: Any) -> bool:
    return isinstance(constraint, annotated_types.MinLen)


def _bounds(constraints: list[Any]) -> str:
    words = []
    for constraint in constraints:
        match constraint:
            case annotated_types.Ge(ge=bound):
                words.append(f"of at least {_number(bound)}")
            case annotated_types.Gt(gt=bound):
                words.append(f"above {_number(bound)}")
            case annotated_types.Le(le=bound):
                words.append(f"at most {_number(bound)}")
            case annotated_types.Lt(lt=bound):
                words.append(f"below {_number(bound)}")
    return " " + " and ".join(words) if words else ""


def _number(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)
