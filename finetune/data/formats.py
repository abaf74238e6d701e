"""The formats of rows: which fields each has, and how a format is told from the first rows of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.fields import RowFault, parse_json
from finetune.data.readers import RawRow
from finetune.errors import DataError
from finetune.recipe.words import did_you_mean, suggest

_LOOK_AT_ROWS = 100
"""Rows that are looked at to tell the format; one bad row among them does not hide it."""


@dataclass(frozen=True)
class Format:
    """needs: fields every row must have; may: fields it can have; turn: fields of the messages inside."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.needs, *self.may, *self.turn)


FORMATS: Mapping[str, Format] = {
    "alpaca": Format(("instruction", "output"), ("input", "history", "system")),
    "sharegpt": Format(("conversations",), ("tools", "system"), ("from", "value")),
    "messages": Format(("messages",), ("tools",), ("role", "content", "tool_calls", "weight")),
    "prompt_completion": Format(("prompt", "completion"), ("tools",), ("role", "content", "tool_calls", "weight")),
    "text": Format(("text",)),
}

_OTHER_WORDS = {
    "prompt": ("question", "query", "problem", "request", "instruction", "input", "context"),
    "completion": ("answer", "response", "reply", "solution", "output", "target", "chosen"),
    "text": ("content", "document", "story", "body"),
    "messages": ("dialog", "dialogue", "chat", "turns", "conversation"),
}
"""Names that other data sets use; they are offered in the message of an unknown format, never assumed."""


@dataclass(frozen=True)
class Known:
    """A format as it was told or detected. columns: our names of fields -> the file's, where they differ."""

    name: str
    columns: Mapping[str, str]
    detected: bool


def known_format(name: str, fields: Mapping[str, str], rows: Sequence[RawRow], shown: str) -> Known:
    """The format of `rows`: `name`, or for "auto" the only one that fits. Raises DataError naming what was seen."""
    _check_fields(name, fields, shown)
    if name != "auto":
        return Known(name, dict(fields), detected=False)
    found: dict[str, tuple[RawRow, Mapping[str, str]]] = {}
    for row in rows[:_LOOK_AT_ROWS]:
        fits = _fitting(row.values, fields)
        if len(fits) > 1:
            raise DataError(
                f"{row.origin} fits more than one format, {' and '.join(fits)} (it has the fields "
                f"{_listed(row.values)}): say which one with format:",
                path=shown,
            )
        for fit, columns in fits.items():
            found.setdefault(fit, (row, columns))
    if len(found) > 1:
        where = " and ".join(f"{fit} ({row.origin})" for fit, (row, _) in found.items())
        raise DataError(f"its rows look like different formats: {where}; say which one with format:", path=shown)
    if not found:
        raise DataError(_unknown(rows[0].values) if rows else "no row can be read", path=shown)
    (fit, (_, columns)) = next(iter(found.items()))
    return Known(fit, columns, detected=True)


def unused_columns(known: Known, rows: Sequence[RawRow]) -> list[str]:
    """Fields of the first rows that the format does not read, each with a hint where it may be a misspelling."""
    format_ = FORMATS[known.name]
    ours = (*format_.needs, *format_.may)
    read = {known.columns.get(name, name) for name in ours}
    there = dict.fromkeys(str(key) for row in rows[:_LOOK_AT_ROWS] for key in row.values)
    absent = [name for name in ours if known.columns.get(name, name) not in there]
    unused = []
    for column in there:
        if column not in read:
            meant = suggest(column, absent, closeness=0.75)
            unused.append(f"{column} (did you mean '{meant}'?)" if meant else column)
    return unused


def _check_fields(name: str, fields: Mapping[str, str], shown: str) -> None:
    names = (
        FORMATS[name].names if name != "auto" else tuple(dict.fromkeys(n for f in FORMATS.values() for n in f.names))
    )
    for key in fields:
        if key not in names:
            whose = "no format has" if name == "auto" else f"format {name} does not have"
            hint = did_you_mean(key, names) or f"its fields are {', '.join(names)}"
            raise DataError(
                f"fields: {whose} a field '{key}' ({hint}); write it as our name: the file's name", path=shown
            )


def _fitting(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Every format that a row has the needed fields of, with the names of its fields."""
    fits: dict[str, Mapping[str, str]] = {}
    for name in ("alpaca", "prompt_completion", "text"):
        if all(fields.get(need, need) in values for need in FORMATS[name].needs):
            fits[name] = dict(fields)
    for name, own in (("messages", "messages"), ("sharegpt", "conversations")):
        column = fields.get(own, own)
        if column in values:
            # Both names are used for both kinds of turns: the turns decide.
            kind = _kind_of_turns(values[column], fields) or name
            fits.setdefault(kind, {**fields, FORMATS[kind].needs[0]: column})
    return fits


def _kind_of_turns(turns: Any, fields: Mapping[str, str]) -> str | None:
    if isinstance(turns, str):
        try:
            turns = parse_json(turns, "")
        except RowFault:
            return None
    if isinstance(turns, (list, tuple)) and turns and isinstance(turns[0], Mapping):
        if fields.get("role", "role") in turns[0]:
            return "messages"
        if fields.get("from", "from") in turns[0]:
            return "sharegpt"
    return None


def _unknown(values: Mapping[str, Any]) -> str:
    known = "; ".join(f"{name} ({', '.join(format_.needs)})" for name, format_ in FORMATS.items())
    return (
        f"the format of its rows is not known: they have the fields {_listed(values)}. Known formats: {known}."
        f"{_advice([str(key) for key in values])}"
    )


def _advice(there: Sequence[str]) -> str:
    """The line of the recipe that may help: a misspelt field, a renaming, or which stage such rows are for."""
    if "chosen" in there and "rejected" in there:
        return " These look like pairs for preference training, which an sft stage does not read."
    for format_ in FORMATS.values():
        missing = [need for need in format_.needs if need not in there]
        near = {need: suggest(need, [key for key in there if key not in format_.needs], 0.75) for need in missing}
        if missing and all(near.values()):
            return " Did you mean " + " and ".join(f"'{need}' for '{key}'" for need, key in near.items()) + "?"
    for name in ("prompt_completion", "messages", "text"):
        pairs = {need: next((w for w in _OTHER_WORDS[need] if w in there), None) for need in FORMATS[name].needs}
        if all(pairs.values()):
            renamed = ", ".join(f"{need}: {key}" for need, key in pairs.items())
            return f" If they are {name} under other names, say so: format: {name}, fields: {{{renamed}}}"
    return " Name the format with format: and its fields with fields: {our name: the file's name}."


def _listed(values: Mapping[str, Any]) -> str:
    names = [str(key) for key in values]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "(none)"
