"""What was asked: samples name their prompts by where they stand (`prompts.jsonl:17`); here they are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from finetune.data.convert_prompts import message_fields
from finetune.data.sources import READ_PROMPTS, read_source
from finetune.errors import InputError
from finetune.plan.digest import source_digest
from finetune.recipe.checks import located
from finetune.recipe.data_settings import DataSource
from finetune.report.read import FinishedRun
from finetune.shapes import Completion, Dialog, Example

LARGEST = 16 * 2**20
"""Bytes of a file that is read for a page."""


def questions(run: FinishedRun) -> dict[str, dict[str, Any]]:
    """By origin `prompt`, or `messages` of a longer conversation, of the samples whose files are found unchanged."""
    wanted = {str(line.get("prompt")) for line in run.samples}
    settings, data = run.manifest.get("settings") or {}, run.manifest.get("data") or {}
    recorded = {
        entry.get("source"): entry.get("digest")
        for key in ("sources", "held_out_sources")
        for entry in data.get(key) or ()
    }
    found: dict[str, dict[str, Any]] = {}
    for entry in [*(settings.get("prompts") or ()), *((settings.get("held_out") or {}).get("data") or ())]:
        if isinstance(entry, Mapping) and entry.get("path") in recorded:
            found |= _asked(DataSource.model_validate(entry), recorded[entry["path"]], run.folder, wanted)
    return found


def _asked(source: DataSource, digest: object, run: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    for place in _places(run):
        locate = partial(located, place)
        path = locate(str(source.path))
        if not path.is_file() or path.stat().st_size > LARGEST:
            continue
        try:
            if source_digest(source, locate) != digest:
                continue
            rows = read_source(source, READ_PROMPTS, locate=locate, stage_outputs={}, say=_nothing).rows
        except InputError:  # the run has read it, this version does not: the origin is shown instead
            continue
        return {str(row.origin): _shown(row.example) for row in rows if str(row.origin) in wanted}
    return {}


def _shown(asked: Example) -> dict[str, Any]:
    if isinstance(asked, Dialog):
        several = len(asked.messages) > 1
        return {"messages": message_fields(asked.messages)} if several else {"prompt": asked.messages[0].content}
    return {"prompt": asked.prompt if isinstance(asked, Completion) else asked.text}


def _places(run: Path) -> list[Path]:
    """Folders that the recipe may stand in: where its paths begin."""
    near = [Path.cwd(), *run.absolute().parents[1:4]]
    return [folder for place in near for folder in (place, place / "recipes")]


def _nothing(line: str) -> None:
    """What reading says was said when the stage ran."""
