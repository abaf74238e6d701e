"""The formats of rows: which fields each has, and how a format is told from the first rows of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.fitting import EXAMPLES, FORMATS, PROMPTS, RANKINGS, Kind, fitting, kind_of_format, prompt_alone
from finetune.data.readers import RawRow
from finetune.errors import DataError
from finetune.recipe.words import did_you_mean, suggest

LOOK_AT_ROWS = 100
"""Rows that are looked at to tell the format; one bad row among them does not hide it."""


_OTHER_WORDS = {
    "prompt": ("question", "query", "problem", "request", "instruction", "input", "context"),
    "completion": ("answer", "response", "reply", "solution", "output", "target", "chosen"),
    "text": ("content", "document", "story", "body"),
    "messages": ("dialog", "dialogue", "chat", "turns", "conversation"),
    "chosen": ("preferred", "better", "accepted", "winner", "chosen_response", "response_chosen", "answer_chosen"),
    "rejected": ("dispreferred", "worse", "loser", "rejected_response", "response_rejected", "answer_rejected"),
    "answers": ("responses", "completions", "replies", "candidates", "outputs"),
    "label": ("desirable", "is_desirable", "thumbs_up", "liked", "good", "feedback"),
}
"""Names that other data sets use; they are offered in the message of an unknown format, never assumed."""
_RENAMED: Mapping[str, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "prompt": ("prompt",),
    "text": ("text",),
    "pairs": ("prompt", "chosen", "rejected"),
    "ranked": ("prompt", "answers"),
    "judged": ("prompt", "completion", "label"),
}
"""The fields for which other names are looked for, by format, in this order."""


_SHOWN: Mapping[str, str] = {
    "pairs": "prompt, chosen, rejected",
    "hh": "chosen, rejected: transcripts",
    "oasst": "prompt with replies",
    "judged": "label with prompt and completion, or with messages",
}
"""What a user should know of a format's fields, where the needed ones are not all of it."""


@dataclass(frozen=True)
class Known:
    """A format as it was told or detected. columns: our names of fields -> the file's, where they differ."""

    name: str
    columns: Mapping[str, str]
    detected: bool


def known_format(
    name: str, fields: Mapping[str, str], rows: Sequence[RawRow], shown: str, kind: Kind = EXAMPLES
) -> Known:
    """The format of `rows`: `name`, or for "auto" the only one that fits. Raises DataError naming what was seen.

    kind: what the stage reads. A row of sft that could also be a comparison is not taken for an example: it would
    train on the worse answer.
    """
    if name != "auto" and name not in kind.formats:
        raise DataError(
            f"format {name} is for {kind_of_format(name).who}; this one reads {_any_of(kind.formats)}", path=shown
        )
    _check_fields(name, fields, shown, kind)
    if name != "auto":
        return Known(name, dict(fields), detected=False)
    found: dict[str, tuple[RawRow, Mapping[str, str]]] = {}
    for row in rows[:LOOK_AT_ROWS]:
        every = fitting(row.values, fields)
        fits = {fit: columns for fit, columns in every.items() if fit in kind.formats}
        if kind is PROMPTS and not fits:
            fits = prompt_alone(row.values, fields)
        if kind is EXAMPLES and fits and _could_be_worse(row, every, fields):
            fits = every
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
        raise DataError(_unknown(rows[0].values, fields, kind) if rows else "no row can be read", path=shown)
    (fit, (_, columns)) = next(iter(found.items()))
    return Known(fit, columns, detected=True)


def _could_be_worse(row: RawRow, every: Mapping[str, object], fields: Mapping[str, str]) -> bool:
    """Whether a row that an sft stage could read holds a rejected answer, or a verdict on its answer."""
    label = row.values.get(fields.get("label", "label"))
    return any(fit in every for fit in ("pairs", "sharegpt_pairs", "hh")) or (
        "judged" in every and isinstance(label, bool)
    )


def unused_columns(known: Known, rows: Sequence[RawRow]) -> list[str]:
    """Fields of the first rows that the format does not read, each with a hint where it may be a misspelling."""
    format_ = FORMATS[known.name]
    ours = (*format_.needs, *format_.may)
    read = {known.columns.get(name, name) for name in ours}
    there = dict.fromkeys(str(key) for row in rows[:LOOK_AT_ROWS] for key in row.values)
    absent = [name for name in ours if known.columns.get(name, name) not in there]
    unused = []
    for column in there:
        if column not in read:
            meant = suggest(column, absent, closeness=0.75)
            unused.append(f"{column} (did you mean '{meant}'?)" if meant else column)
    return unused


def _check_fields(name: str, fields: Mapping[str, str], shown: str, kind: Kind) -> None:
    formats = kind.formats if name == "auto" else (name,)
    names = tuple(dict.fromkeys(field for format_ in formats for field in FORMATS[format_].names))
    for key in fields:
        if key not in names:
            whose = "no format has" if name == "auto" else f"format {name} does not have"
            hint = did_you_mean(key, names) or f"its fields are {', '.join(names)}"
            raise DataError(
                f"fields: {whose} a field '{key}' ({hint}); write it as our name: the file's name", path=shown
            )


def _unknown(values: Mapping[str, Any], fields: Mapping[str, str], kind: Kind) -> str:
    known = "; ".join(f"{name} ({_SHOWN.get(name) or ', '.join(FORMATS[name].needs)})" for name in kind.formats)
    return (
        f"the format of its rows is not known: they have the fields {_listed(values)}. Known formats: {known}."
        f"{_advice([str(key) for key in values], list(fitting(values, fields)), kind)}"
    )


def _advice(there: Sequence[str], fits: Sequence[str], kind: Kind) -> str:
    """The line of the recipe that may help: which stage such rows are for, a misspelt field, or a renaming."""
    if fits:
        fit = min(fits, key=lambda name: kind_of_format(name) is EXAMPLES)  # a verdict says more than its answer
        theirs = kind_of_format(fit)
        shown = f"{fit} for preference training" if theirs is RANKINGS else fit
        return f" These look like {shown}, which {theirs.who} read, not this one."
    if "chosen" in there and "rejected" in there and kind is not RANKINGS:
        return f" These look like pairs for preference training, which {RANKINGS.who} read, not this one."
    for name in kind.formats:
        missing = [need for need in FORMATS[name].needs if need not in there]
        near = {need: suggest(need, [key for key in there if key not in FORMATS[name].needs], 0.75) for need in missing}
        if missing and all(near.values()):
            return " Did you mean " + " and ".join(f"'{need}' for '{key}'" for need, key in near.items()) + "?"
    for name, needs in _RENAMED.items():
        # Of question and answer, the question is the prompt; the answer stays, as a column.
        if name in kind.formats and (kind is not PROMPTS or name != "prompt_completion"):
            words = {need: next((w for w in (need, *_OTHER_WORDS[need]) if w in there), None) for need in needs}
            if all(words.values()):
                renamed = ", ".join(f"{need}: {key}" for need, key in words.items() if need != key)
                return f" If they are {name} under other names, say so: format: {name}, fields: {{{renamed}}}"
    if "prompt" in there and kind is EXAMPLES:
        return f" If they are prompts without answers: {PROMPTS.who} read those."
    return " Name the format with format: and its fields with fields: {our name: the file's name}."


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _listed(values: Mapping[str, Any]) -> str:
    names = [str(key) for key in values]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "(none)"
