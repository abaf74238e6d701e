"""pydantic's errors told in plain words: key path, line, what was expected, what was found, what was probably meant."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from finetune.errors import Problem
from finetune.recipe.hints import unknown_key_hint, value_hint
from finetune.recipe.positions import KeyPath, value_at
from finetune.recipe.schema import Recipe
from finetune.recipe.source import Source
from finetune.recipe.words import describe, describe_value, did_you_mean, is_section, kinds_of, members, suggest, unwrap


@dataclass(frozen=True)
class _Place:
    """Where a pydantic location leads: `path` as in the file, without the labels of union members."""

    path: KeyPath
    expected: Any  # the annotation there; None for an unknown key
    section: type[BaseModel]  # the innermost section on the way
    choice: KeyPath | None = None  # the key path of a union on the way
    is_key: bool = False  # the key itself is wrong, not its value


def explain(
    error: ValidationError, data: Mapping[str, Any], source: Source, skip_stages: Container[str] = ()
) -> list[Problem]:
    """One problem for each thing that is wrong. `data` is what was validated."""
    details = [
        (_place(location), detail)
        for detail in error.errors(include_url=False)
        if not (len(location := detail["loc"]) > 1 and location[0] == "stages" and location[1] in skip_stages)
        or location[-1] == "[key]"
    ]
    deeper = {place.choice for place, _ in details if place.choice is not None and place.path != place.choice}
    problems: dict[tuple[Any, ...], Problem] = {}
    for place, detail in details:
        if place.choice is not None and place.path == place.choice and place.choice in deeper:
            continue  # one alternative fits but for an entry of it, which has a problem of its own
        key = (place.path, detail["msg"] if detail["type"] == "value_error" else "")
        problems.setdefault(key, _problem(place, detail, data, source))
    return list(problems.values())


def _place(location: tuple[int | str, ...]) -> _Place:
    place = _Place((), Recipe, Recipe)
    rest = list(location)
    while rest and place.expected is not None:
        choices = members(place.expected)
        while len(choices) == 1 and choices[0] is not place.expected:  # a union in `… | None`
            place = replace(place, expected=choices[0])
            choices = members(place.expected)
        if len(choices) > 1:
            label = rest.pop(0)  # pydantic names the alternative it tried: 'list[str]', or the kind of a section
            if of_kind := kinds_of(place.expected).get(str(label)):
                place = replace(place, expected=of_kind)
                continue
            inside = next((choice for choice in choices if _has_inside(choice)), None)
            place = replace(place, expected=inside if rest else place.expected, choice=place.path)
            continue
        inner, _ = unwrap(choices[0])
        key = rest.pop(0)
        if rest == ["[key]"]:
            return replace(place, path=(*place.path, key), expected=get_args(inner)[0], is_key=True)
        if is_section(inner):
            expected = get_type_hints(inner, include_extras=True).get(str(key))
            place = replace(place, section=inner, expected=expected)
        elif get_origin(inner) is tuple:
            return place  # a wrong entry is told with the whole pair
        else:
            place = replace(place, expected=get_args(inner)[-1] if get_args(inner) else None)
        place = replace(place, path=(*place.path, key))
    return place


def _has_inside(annotation: Any) -> bool:
    inner, _ = unwrap(annotation)
    return get_origin(inner) in (list, dict, tuple) or is_section(inner)


def _problem(place: _Place, detail: Any, data: Mapping[str, Any], source: Source) -> Problem:
    match detail["type"]:
        case "extra_forbidden":
            return source.problem(place.path, "unknown key", unknown_key_hint(place.path, place.section, data, source))
        case "missing" if place.path and get_origin(unwrap(place.expected)[0]) is not tuple:
            return _missing(place, data, source)
        case "value_error":
            message = str(detail["ctx"]["error"])
            first, _, rest = message.partition(" ")
            if named := _named(data, place.path, first):  # the message begins with the key that it is about
                return source.problem(named, rest)
            return source.problem(place.path, message)
        case "union_tag_invalid" | "union_tag_not_found":
            return _kind_problem(place, data, source)
    if place.expected is None:
        return source.problem(place.path, f"{detail['msg']}; found {describe_value(value_at(data, place.path))}")
    if place.is_key:
        return source.problem(place.path, f"expected {describe(place.expected)} as the key")
    value = value_at(data, place.path)
    message = f"expected {describe(place.expected)}; found {describe_value(value)}"
    return source.problem(place.path, message, value_hint(place.path, place.expected, place.section, value))


def _named(data: Any, path: KeyPath, dotted: str) -> KeyPath | None:
    """The key path below `path` that `dotted` names, if there is a value; stage names may hold dots."""
    if not dotted:
        return path if path and value_at(data, path) is not None else None
    keys = dotted.split(".")
    here = value_at(data, path)
    for length in range(len(keys), 0, -1):
        key = ".".join(keys[:length])
        if isinstance(here, Mapping) and here.get(key) is not None:
            return _named(data, (*path, key), ".".join(keys[length:]))
    return None


def _kind_problem(place: _Place, data: Mapping[str, Any], source: Source) -> Problem:
    """A section in a stage whose kind is not known, or missing."""
    kinds = kinds_of(place.expected)
    given = value_at(data, place.path)
    known = ", ".join(kinds)
    if not isinstance(given, Mapping) or "kind" not in given:
        message = f"missing key: section {source.text(place.path)}, which begins here, needs it ({known})"
        return source.problem((*place.path, "kind"), message, at=place.path)
    kind = given["kind"]
    found = f"'{kind}'" if isinstance(kind, str) else describe_value(kind)
    hint = did_you_mean(kind, kinds) if isinstance(kind, str) else None
    return source.problem((*place.path, "kind"), f"unknown kind {found}; known are: {known}", hint)


def _missing(place: _Place, data: Mapping[str, Any], source: Source) -> Problem:
    *section, key = place.path
    given = value_at(data, tuple(section))
    unknown = [name for name in given if name not in place.section.model_fields] if isinstance(given, Mapping) else []
    typo = suggest(str(key), [*unknown])
    where = f"section {source.text(tuple(section))}, which begins here, needs it" if section else "a recipe needs it"
    if section and isinstance(section[-1], int):
        where = "the entry that begins here needs it"
    hint = f"is '{typo}' meant to be '{key}'?" if typo else None
    return source.problem(place.path, f"missing key: {where} ({describe(place.expected)})", hint, at=tuple(section))
