"""Data sources and held-out rows: entries of data, and what share is kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.recipe.positions import KeyPath, key_path_text


def add_source(
    draft: Draft,
    section: Section,
    key: str,
    given: str,
    files: list[str],
    extra: Mapping[str, Any],
    to: KeyPath,
) -> None:
    """One source of theirs, which may be several files, at the end of the list `to` of the stage.

    key: of theirs, for the comment. extra: format, fields, split and others; those of the hub only are left away
    where the rows are in files.
    """
    path = draft.of_stage(*to)
    notes = []
    for found, note in draft.places.rows(given, files):
        hub_only = ("split", "subset", "revision")
        entry = {**found, **{name: value for name, value in extra.items() if "hub" in found or name not in hub_only}}
        where = next(iter(found))
        comment = f"{key_path_text(section.at(key))}: {section.text(key)}" + (f"; {note}" if note else "")
        draft.append(path, entry, {where: comment})
        notes += [note] if note else []
    what = f"→ {key_path_text(path)}"
    section.tell(key, Fate.DECIDE if notes else Fate.CARRIED, "; ".join([what, *notes]))


def held_out_share(draft: Draft, section: Section, key: str) -> bool:
    """Their validation share, or number of rows. Returns whether there are any; absent = none, as with them."""
    share = section.number(key)
    if not share:
        path = draft.of_stage("held_out", "fraction")
        if share is None:
            draft.put(path, 0.0, f"{draft.account.tool} holds out nothing where {key} is absent")
        else:
            draft.carry(section, key, path, 0.0)
        return False
    if share < 1:
        path = draft.of_stage("held_out", "fraction")
        draft.carry(section, key, path, float(share), "of it at most held_out.max_rows, 256, are kept apart")
    else:
        path = draft.of_stage("held_out", "max_rows")
        draft.put(draft.of_stage("held_out", "fraction"), 0.5, f"with max_rows: {share:g} rows, or half of all")
        draft.carry(section, key, path, int(share))
    return True


def no_held_out(draft: Draft) -> None:
    draft.put(draft.of_stage("held_out", "fraction"), 0.0, f"{draft.account.tool} was given no rows to measure on")


def too_long(draft: Draft, key: str) -> None:
    """Tools that cut rows at `key`: sft stages cut too, if elsewhere; those that learn from comparisons do not."""
    path = draft.of_stage("too_long")
    match draft.recipe["stages"][draft.stage]["kind"]:
        case "sft":
            draft.put(path, "truncate", f"theirs cuts at {key}; here the last answer's end is cut, never a prompt")
        case "dpo" | "reward":
            draft.put(path, "drop", f"theirs cuts at {key}; here what has too long an answer is left out and counted")


def needs_rows(draft: Draft, section: Section, key: str, to: KeyPath = ("data",)) -> None:
    """A stage without rows cannot be written: say so where the key should be."""
    if not draft.has(draft.of_stage(*to)):
        section.account.problem(section.at(key), f"the file names no training rows ({key}): add them", None)
