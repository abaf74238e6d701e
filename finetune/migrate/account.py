"""Their configuration, with an account of every key: what it held, and what became of it. Nothing is dropped unsaid.

Values are read with the type that they should have; what is of another type is a problem with its line, and all
problems are told at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from finetune.errors import Problem, RecipeError
from finetune.recipe.positions import KeyPath, Position, key_path_text, plain_scalar, position_at
from finetune.recipe.words import describe_value

_SECRET_KEY = re.compile(r"((^|_)(hub|auth|access|api|login)_?token|^token|api_?key|secret|password|webhook.*)$", re.I)
_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,})")
_LARGEST = 1e15
"""What is beyond is no setting, nor is what is not finite."""
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""YAML 1.1, which the other tools read, has these words for booleans; a recipe has only true and false."""


class Fate(Enum):
    """What became of a key. The value is how it is told."""

    CARRIED = "carried over"
    CHANGED = "changed"
    LEFT_OUT = "left out"
    EMPTY = "empty or off"
    DECIDE = "to be decided by you"


@dataclass(frozen=True)
class Told:
    """One key's fate. `key` is empty for what no single key says."""

    key: str
    value: str
    fate: Fate
    note: str = ""


@dataclass
class Account:
    """source: the file, as the user gave it. tool: as people call it. aside: what is to be decided beside the keys."""

    source: str
    tool: str
    positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    told: dict[KeyPath, Told] = field(default_factory=dict)
    aside: list[Told] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def tell(self, path: KeyPath, value: Any, fate: Fate, note: str = "") -> None:
        self.told[path] = Told(key_path_text(path), shown(value, str(path[-1])), fate, note)

    def decide(self, note: str) -> None:
        """Something that the user has to decide, and that is of no single key."""
        told = Told("", "", Fate.DECIDE, note)
        if told not in self.aside:
            self.aside.append(told)

    def problem(self, path: KeyPath, message: str, hint: str | None = None) -> None:
        position = position_at(self.positions, path)
        self.problems.append(Problem(message, key_path_text(path), position.line if position else None, hint))

    def raise_problems(self) -> None:
        """Raise RecipeError with all that is wrong in their file."""
        if self.problems:
            raise RecipeError(sorted(self.problems, key=lambda problem: problem.line or 0), self.source)

    def of(self, fate: Fate) -> list[Told]:
        """In the order of their file; what is of no key comes first."""

        def place(entry: tuple[KeyPath, Told]) -> tuple[int, int]:
            position = position_at(self.positions, entry[0])
            return (position.line, position.column) if position else (0, 0)

        told = [entry for _, entry in sorted(self.told.items(), key=place)]
        return [entry for entry in (*self.aside, *told) if entry.fate is fate]


def shown(value: Any, key: str = "") -> str:
    """A value as it is written in a comment: one line, long text cut, secrets not copied, all nested keys named."""
    if isinstance(value, str) and value and (_SECRET_KEY.search(key) or _SECRET_VALUE.search(value)):
        return "(a secret, not copied)"
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Mapping():
            return "{" + ", ".join(f"{name}: {shown(inner, str(name))}" for name, inner in value.items()) + "}"
        case list() if any(isinstance(entry, Mapping | list) for entry in value):
            return "[" + ", ".join(shown(entry, key) for entry in value) + "]"
        case list():
            more = f", … {len(value) - 8} more" if len(value) > 8 else ""
            return "[" + ", ".join(shown(entry, key) for entry in value[:8]) + more + "]"
        case str():
            text = " ".join(value.split())
            return text if len(text) <= 70 else text[:67] + "…"
    return str(value)


@dataclass(frozen=True)
class Section:
    """A section of their file. null is the same to their tools as no key, and to these readers too."""

    account: Account
    values: Mapping[str, Any]
    path: KeyPath = ()

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def raw(self, key: str) -> Any:
        return self.values.get(key)

    def at(self, key: str) -> KeyPath:
        return (*self.path, key)

    def tell(self, key: str, fate: Fate, note: str = "") -> None:
        """What became of a key; nothing where it is not in the file."""
        if key in self.values:
            self.account.tell(self.at(key), self.values[key], fate, note)

    def decide(self, key: str, note: str) -> None:
        self.tell(key, Fate.DECIDE, note)

    def number(self, key: str) -> float | int | None:
        """A number; text such as 1e-4, which YAML 1.1 takes for text and the other tools convert, is one."""
        value = self.raw(key)
        if isinstance(value, str):
            value = plain_scalar(value.strip())
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
            return value
        self._wrong(key, "a number")
        return None

    def whole(self, key: str) -> int | None:
        value = self.number(key)
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            self._wrong(key, "a whole number")
            return None
        return value

    def flag(self, key: str) -> bool | None:
        value = self.raw(key)
        if isinstance(value, str):
            value = _FLAGS.get(value.strip().lower(), value)
        if isinstance(value, bool):
            return value
        self._wrong(key, "true or false")
        return None

    def text(self, key: str) -> str | None:
        value = self.raw(key)
        if isinstance(value, str):
            return value.strip() or None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        self._wrong(key, "text")
        return None

    def words(self, key: str) -> list[str]:
        """A list of texts; one text with commas is a list too."""
        value = self.raw(key)
        if isinstance(value, str):
            return [word.strip() for word in value.split(",") if word.strip()]
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return list(value)
        self._wrong(key, "text or a list of texts")
        return []

    def section(self, key: str) -> Section:
        """The section under a key; an empty one where there is none."""
        value = self.raw(key)
        if not isinstance(value, Mapping):
            self._wrong(key, "a section")
        return Section(self.account, value if isinstance(value, Mapping) else {}, self.at(key))

    def sections(self, key: str) -> list[Section]:
        """The sections of a list; one section alone is a list of one."""
        value = self.raw(key)
        if isinstance(value, Mapping):
            return [self.section(key)]
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            self._wrong(key, "a list of sections")
            return []
        return [Section(self.account, entry, (*self.at(key), index)) for index, entry in enumerate(value)]

    def _wrong(self, key: str, wanted: str) -> None:
        """A problem, unless there is nothing."""
        if self.raw(key) is None:
            return
        self.account.problem(self.at(key), f"expected {wanted}; found {describe_value(self.raw(key))}")
