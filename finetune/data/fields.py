"""Reading the fields of a row: text is text, and whatever else is found there is said, never converted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.recipe.words import suggest


class RowFault(Exception):
    """What is wrong with a row, on its way to the list of bad rows; it does not leave finetune.data."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        self.reason, self.field = reason, name
        super().__init__(reason)


def kind_of(value: object) -> str:
    """A value's kind in a user's words."""
    match value:
        case None:
            return "null"
        case bool():
            return f"{'true' if value else 'false'}, not text"
        case int() | float():
            return f"a number ({value})"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"


@dataclass(frozen=True)
class Record:
    """One object of a row. columns: other names of its fields, ours -> the file's. at: its path inside the row."""

    values: Mapping[str, Any]
    columns: Mapping[str, str] = field(default_factory=dict)
    at: str = ""

    def column(self, name: str) -> str:
        return self.columns.get(name, name)

    def path(self, name: str) -> str:
        """The field's name for messages: `conversations[2].value`."""
        return self.at + self.column(name)

    def get(self, name: str) -> Any:
        """The value, None where the field is absent or null."""
        return self.values.get(self.column(name))

    def required(self, name: str) -> Any:
        column = self.column(name)
        if column not in self.values:
            there = [str(key) for key in self.values]
            meant = suggest(column, there)
            raise RowFault(
                f"is missing; the fields are {', '.join(there[:8]) or 'none'}"
                + (f" (is '{meant}' a misspelling of it?)" if meant else ""),
                self.path(name),
            )
        return self.values[column]

    def text(self, name: str) -> str:
        """Text that says something. Raises RowFault on a missing field, null, a number, and blank text."""
        value = self.checked(self.required(name), name)
        if not value.strip():
            raise RowFault("is empty" if not value else "is blank", self.path(name))
        return value

    def optional_text(self, name: str) -> str | None:
        """Text, or None where the field is absent, null or blank."""
        value = self.get(name)
        if value is None:
            return None
        return self.checked(value, name) if not isinstance(value, str) or value.strip() else None

    def checked(self, value: object, name: str) -> str:
        """`value` if it is text that can be written as UTF-8."""
        if not isinstance(value, str):
            raise RowFault(f"should be text, is {kind_of(value)}", self.path(name))
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):04x}"
                raise RowFault(f"holds half of a surrogate pair ({half})", self.path(name)) from error
        return value

    def items(self, name: str, *, required: bool = True) -> list[Any]:
        """A list, or the same written as JSON text; absent, null and blank give [] unless required."""
        value = self.required(name) if required else self.get(name)
        if isinstance(value, str) and (value.strip() or required):
            value = parse_json(value, self.path(name))
        if isinstance(value, (list, tuple)):
            return list(value)
        if not required and (value is None or value == ""):
            return []
        raise RowFault(f"should be a list, is {kind_of(value)}", self.path(name))

    def children(self, name: str) -> list[Record]:
        """The objects of a list that must not be empty. They share this record's names of fields."""
        items = self.items(name)
        if not items:
            raise RowFault("has no messages", self.path(name))
        children = []
        for index, item in enumerate(items):
            if not isinstance(item, Mapping):
                raise RowFault(f"should be an object, is {kind_of(item)}", f"{self.path(name)}[{index}]")
            children.append(Record(item, self.columns, f"{self.path(name)}[{index}]."))
        return children


def parse_json(value: str, path: str) -> Any:
    """The value of a field that holds JSON as text."""
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowFault(f"is not valid JSON: {error.msg} at column {error.colno}", path) from error
    except RecursionError as error:
        raise RowFault("is JSON nested too deeply", path) from error
