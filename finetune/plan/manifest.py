"""The manifest: the file that proves a run is finished, and says what made it.

It is written last into the run's folder, which only then gets its name, so a folder with a manifest is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.durable import damaged_file, write_json
from finetune.errors import InputError

FILE = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `folder/manifest.json`. content: everything but the format number."""
    write_json(folder / FILE, {"format": FORMAT, **content})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished run, None where the folder is none. Raises InputError when it cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): move {folder} away to run the stage again") from error
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path} has format {manifest.get('format')!r}; this version of finetune reads {FORMAT}")
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compare every recorded file's size and sha256. Raises InputError naming the first that differs."""
    if problem := damaged_file(folder, manifest["files"]):
        raise InputError(f"{folder}: {problem}. It is not what was written; move it away to run the stage again")
