"""Recipes as text: YAML that reads back as what it was written from, and paths that are right in another folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from finetune.recipe.base_checks import looks_like_path
from finetune.recipe.checks import located
from finetune.recipe.positions import KeyPath, plain_scalar
from finetune.recipe.references import REFERENCE_KEYS, ROW_LISTS
from finetune.recipe.rounds import is_group


class _Dumper(yaml.SafeDumper):
    """PyYAML writes for YAML 1.1: text that our reader would take for a number has to be quoted here."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if isinstance(plain_scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _write_text)


def as_yaml(data: Mapping[str, Any]) -> str:
    """A recipe's data as YAML, keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def plain(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's data as its YAML would give it: dicts, lists, texts and numbers of its own."""
    return {key: _plain(value) for key, value in data.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, str | PurePath):
        return str(value)
    return float(value) if isinstance(value, float) else value  # numpy's are floats too


def merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with `changes`: sections are merged, everything else is replaced."""
    found = dict(data)
    for key, value in changes.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return found


def moved(data: Mapping[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """A recipe's data, written for the folder `old`, for the folder `new`: its relative paths lead to the same files.

    data: as the user wrote it, groups and rounds too. Hub names, stage names and absolute paths stay.
    """
    stages = data.get("stages", {})
    names = set(_names(stages))

    def path(value: str) -> str:
        return _relative(located(old, value), new) if not os.path.isabs(os.path.expanduser(value)) else value

    def base(value: str) -> str:
        return path(value) if located(old, value).is_dir() or looks_like_path(value) else value

    def dotted(value: str) -> str:  # without the dot it could be a name, of a stage or on the hub
        there = path(value)
        return there if there.startswith((".", "/", "~")) else f"./{there}"

    def hub(value: str) -> str:
        return dotted(value) if value.startswith(".") else value

    def reference(value: str) -> str:
        is_stage = value in names or (value == "all" and not located(old, value).is_dir())
        return value if is_stage else dotted(value)

    def row(value: Any) -> Any:
        own = {"path": path, "hub": hub}
        if not isinstance(value, Mapping):
            return value
        return {key: _each(inner, own[key]) if key in own else inner for key, inner in value.items()}

    def stage(content: Any) -> Any:
        for keys in ROW_LISTS:
            content = _changed(content, keys, lambda entries: _each(entries, row))
        for keys in REFERENCE_KEYS:
            content = _changed(content, keys, lambda value: _each(value, reference))
        return content

    found = {**data, "stages": {}}
    for name, content in stages.items():
        if is_group(content):
            inner = {key: stage(value) for key, value in content["stages"].items()}
            content = {**content, "stages": inner}
        found["stages"][name] = stage(content)
    return _changed(found, ("model", "base"), lambda value: _each(value, base))


def _names(stages: Mapping[str, Any]) -> list[str]:
    """Everything that a reference can mean in a recipe: stages, those of groups, and their rounds (best.2)."""
    found = list(stages)
    for content in stages.values():
        if is_group(content):
            rounds = range(1, int(content["repeat"]) + 1)
            found += [*content["stages"], *(f"{name}.{number}" for name in content["stages"] for number in rounds)]
    return found


def _each(value: Any, change: Any) -> Any:
    """`change` of every text in a value: in a list, by round, and in {first, then}."""
    if isinstance(value, Mapping):
        return {key: _each(inner, change) for key, inner in value.items()} if _is_choice(value) else change(value)
    if isinstance(value, list):
        return [_each(entry, change) for entry in value]
    return change(value) if isinstance(value, str) else value


def _is_choice(value: Mapping[str, Any]) -> bool:
    return set(value) in ({"round"}, {"first", "then"})


def _changed(section: Any, keys: KeyPath | Sequence[str | int], change: Any) -> Any:
    """A copy of the section with the value at the key path changed, where there is one; of all rounds' sections."""
    if not keys:
        return change(section)
    if isinstance(section, Mapping) and set(section) == {"round"}:
        return {"round": [_changed(each, keys, change) for each in section["round"]]}
    if not isinstance(section, Mapping) or section.get(keys[0]) is None:
        return section
    return {**section, keys[0]: _changed(section[keys[0]], keys[1:], change)}


def _relative(path: Path, folder: Path) -> str:
    """How `path` is written in `folder`. Links on the way are followed first: `..` leads out of where they lead to."""
    path = Path(os.path.abspath(path)) if path.name in ("", ".", "..") else path.absolute()
    return Path(os.path.relpath(Path(os.path.realpath(path.parent)) / path.name, os.path.realpath(folder))).as_posix()
