"""`--set key.path=value`: one value of the recipe changed from the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.errors import Problem
from finetune.recipe.positions import KeyPath, key_path_text, plain_scalar, read_yaml
from finetune.recipe.words import describe_value, did_you_mean


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[KeyPath, str], list[Problem]]:
    """Change `data` in place; sections that are not there yet are made. Of two --set of one key the later counts.

    Returns key path → the --set that gave it, and what is wrong with a --set itself. Whether the key exists and
    takes such a value is the schema's to say.
    """
    given: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = re.sub(r"\[(\d+)\]", r".\1", dotted.strip()).split(".")
        if not equals or "" in keys:
            problems.append(Problem(f"--set {override}: expected key.path=value, such as stages.sft.train.epochs=1"))
            continue
        value, problem = _value(text.strip())
        if problem is None:
            path, problem = _assign(data, keys, value)
        if problem is None:
            given[path] = override
        else:
            problems.append(Problem(f"--set {override}: {problem.message}", "", None, problem.hint))
    return given, problems


def _value(text: str) -> tuple[Any, Problem | None]:
    """A quoted text, [list] or {section} as YAML reads it; anything else as an unquoted YAML value."""
    if not text.startswith(("'", '"', "[", "{")):
        return plain_scalar(text), None
    document = read_yaml(text)
    return document.value, next(iter(document.problems), None)


def _assign(data: dict[str, Any], keys: list[str], value: Any) -> tuple[KeyPath, Problem | None]:
    here: Any = data
    path: KeyPath = ()
    while True:
        key, keys = _next_key(here, keys)
        if isinstance(here, list):
            if not isinstance(key, int) or key >= len(here):
                entries = f"entries 0 to {len(here) - 1}" if here else "no entries"
                return path, Problem(f"{key_path_text(path)} is a list with {entries}; '{key}' is none of them")
        elif not isinstance(here, dict):
            return path, Problem(f"{key_path_text(path)} is {describe_value(here)}, not a section")
        elif path[-1:] == ("stages",) and keys and key not in here:
            # A section made here would be a stage without kind and data: never what was meant.
            return path, Problem(f"there is no stage '{key}'", hint=_stage_hint(str(key), here))
        elif keys and here.get(key) is None:
            here[key] = {}
        path = (*path, key)
        if not keys:
            here[key] = value
            return path, None
        here = here[key]


def _stage_hint(name: str, stages: Mapping[str, Any]) -> str | None:
    for group, section in stages.items():
        inner = section.get("stages") if isinstance(section, Mapping) else None
        if isinstance(inner, Mapping) and name in inner:
            return f"it is in group {group}: stages.{group}.stages.{name}"
    return did_you_mean(name, stages) or (f"the stages are: {', '.join(stages)}" if stages else None)


def _next_key(here: Any, keys: list[str]) -> tuple[str | int, list[str]]:
    """The first key and the rest. Stage names may hold dots, so the longest that exists is taken."""
    if isinstance(here, list) and keys[0].isdecimal():
        return int(keys[0]), keys[1:]
    if isinstance(here, dict):
        for length in range(len(keys), 1, -1):
            if (joined := ".".join(keys[:length])) in here:
                return joined, keys[length:]
    return keys[0], keys[1:]
