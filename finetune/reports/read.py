"""All that a report tells of a run, read from its folder: once, and without falling over what is damaged.

A run's manifest is needed. Of everything else, what is missing, cut off or not what was written becomes a note that
the page shows, and the page goes on without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.durable import damaged_file
from finetune.errors import InputError
from finetune.plan.evaluations import Evaluation, read_evaluations
from finetune.plan.manifest import read_manifest

LOG = "metrics.jsonl"
SHOWN_ROWS = 2000
"""Rows of a file of samples that are read: more than a page can show."""
CHECKED_BYTES = 64 * 2**20
"""Larger files are not hashed for a page; `finetune verify` does."""

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class FinishedRun:
    """log: lines of metrics.jsonl. samples: rows that the stage wrote while it worked. rows: those that it kept.
    pictures: SVG text by file name. notes: what the reader has to know of the files."""

    folder: Path
    manifest: Mapping[str, Any]
    log: Lines = ()
    samples: Lines = ()
    rows: Lines = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.folder.name)

    @property
    def stage(self) -> str:
        return str(self.manifest.get("stage") or self.folder.name)

    @property
    def kind(self) -> str:
        return str(self.manifest.get("kind", "run"))

    @property
    def fingerprint(self) -> str:
        return str(self.manifest.get("fingerprint", ""))

    @property
    def answered(self) -> bool:
        """Whether an evaluation has its answers to some prompts."""
        return any(evaluation.task == "answers" and evaluation.rows for evaluation in self.evaluations)


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run. Raises InputError where the folder has no manifest, or one that cannot be read."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(no_run(folder))
    notes: list[str] = []
    recorded = manifest.get("files") or {}
    log = _lines(folder / LOG, recorded, notes, None)
    if LOG in recorded and not log:
        notes.append(f"{LOG} has no lines that can be read: there are no curves")
    pictures = {}
    for path in sorted(folder.glob("*.svg")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "<svg" in text and text.rstrip().endswith("</svg>"):
            pictures[path.name] = text
        else:
            notes.append(f"{path.name} is not a whole picture: it is left out")
    notes += [f"{name} is missing" for name in recorded if name.endswith(".svg") and not (folder / name).is_file()]
    return FinishedRun(
        folder,
        manifest,
        log,
        _lines(folder / "samples.jsonl", recorded, notes, SHOWN_ROWS),
        _lines(folder / "rows.jsonl", recorded, notes, SHOWN_ROWS),
        pictures,
        read_evaluations(folder, lambda error: notes.append(str(error))),
        tuple(notes),
    )


def no_run(folder: Path) -> str:
    """Why a folder is no finished run, and what to do."""
    if not folder.exists():
        return f"no such run or recipe: {folder}"
    if folder.name.endswith(".part"):
        return f"{folder} is not finished: run its recipe again, it goes on from the last checkpoint"
    return f"{folder} has no manifest.json: not the folder of a finished run"


def _lines(path: Path, recorded: Mapping[str, Any], notes: list[str], most: int | None) -> Lines:
    """The objects of a JSONL file, without the lines that are none; most: of so many lines."""
    name = path.name
    if not path.is_file():
        if name in recorded:
            notes.append(f"{name} is missing")
        return ()
    if name in recorded and path.stat().st_size <= CHECKED_BYTES:
        problem = damaged_file(path.parent, {name: recorded[name]})
        if problem:
            notes.append(f"{problem}: what is shown of it may be wrong")
    with path.open(encoding="utf-8", errors="replace") as file:
        found, wrong = _objects(islice(file, most))
    if wrong:
        lines = f"line {wrong[0]}" if len(wrong) == 1 else f"{len(wrong):,} lines, the first of them line {wrong[0]},"
        notes.append(f"{name}: {lines} cannot be read")
    return found


def _objects(lines: Iterable[str]) -> tuple[list[dict[str, Any]], list[int]]:
    """JSON objects of lines, and the numbers, from 1, of the lines that hold none."""
    found, wrong = [], []
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            wrong.append(at)
    return found, wrong
