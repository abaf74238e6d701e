"""Checkpoints of TRL's trainers: which of them are whole.

transformers writes a checkpoint file by file into its final folder, so a kill leaves one in between; and where
optimizer.pt, scheduler.pt or rng_state.pth is missing it goes on without a word, from other numbers. So a checkpoint
is used only when every file of it is there and can be read.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

_NAME = re.compile(r"checkpoint-(\d+)")
_ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


@dataclass(frozen=True)
class Found:
    """A whole checkpoint."""

    folder: Path
    step: int


def newest_checkpoint(folder: Path) -> tuple[Found | None, list[str]]:
    """The newest whole checkpoint below `folder`, and what was passed over: (checkpoint, warnings).

    What is not whole is removed: its training is done again, and its folder is needed then.
    """
    warnings: list[str] = []
    for step, path in sorted(_folders(folder), reverse=True):
        if (problem := _problem(path, step)) is None:
            return Found(path, step), warnings
        warnings.append(f"checkpoint {path.name} is not whole ({problem}) and is not used")
        shutil.rmtree(path)
    return None, warnings


def _folders(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [(int(match[1]), path) for match, path in named if match]


def _problem(path: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, None = nothing. Archives are read whole and compared with their checksums."""
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        if state["global_step"] != step:
            return f"trainer_state.json is of step {state['global_step']}"
        with safe_open(path / "adapter_model.safetensors", framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # safe_open is no dictionary
                tensors.get_slice(name)
        for name in _ARCHIVES:
            with zipfile.ZipFile(path / name) as archive:
                if (broken := archive.testzip()) is not None:
                    return f"{name}: {broken} is damaged"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, zipfile.BadZipFile) as error:
        return f"{type(error).__name__}: {error}"
    return None
