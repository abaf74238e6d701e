"""Checkpoints that survive: complete or absent, never in between, and resumed to the same bits.

`folder/step-00000120/` holds weights.safetensors (trainable parameters), optimizer.pt, rng.pt, state.json, perhaps
best.safetensors, and files.json with the size and sha256 of each. It is written as `….part`, flushed, and renamed; the
newest folder whose files all match is the one resumed, and an older one is used where the newest was damaged.
"""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from finetune.durable import damaged_file, describe_files, rename, sync_folder, write_bytes
from finetune.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")
_FILES = "files.json"
_REQUIRED = ("weights.safetensors", "optimizer.pt", "rng.pt", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after `step` optimiser steps. `state` is JSON of the loop and its caller."""

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: dict[str, Any]
    state: dict[str, Any]
    best: dict[str, Tensor] | None = None


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write one checkpoint below `folder` and remove all but the newest `keep`."""
    final = folder / f"step-{checkpoint.step:08d}"
    part = final.with_name(final.name + ".part")
    for stale in (part, final):
        if stale.exists():
            shutil.rmtree(stale)
    part.mkdir(parents=True)
    write_bytes(part / "weights.safetensors", pack_tensors(checkpoint.weights))
    write_bytes(part / "optimizer.pt", _pickled(checkpoint.optimizer))
    write_bytes(part / "rng.pt", _pickled(checkpoint.rng))
    if checkpoint.best is not None:
        write_bytes(part / "best.safetensors", pack_tensors(checkpoint.best))
    write_bytes(part / "state.json", json.dumps({"step": checkpoint.step, **checkpoint.state}).encode())
    write_bytes(part / _FILES, json.dumps(describe_files(part), indent=1).encode())
    sync_folder(part)
    rename(part, final)
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files are all as written, and what was passed over: (checkpoint, warnings)."""
    warnings: list[str] = []
    for path in reversed(_folders(folder)):
        if (problem := _problem(path)) is None:
            return _read(path), warnings
        warnings.append(f"checkpoint {path.name} is damaged ({problem}) and is not used")
    return None, warnings


def random_state() -> dict[str, Any]:
    """The state of every random generator that training can draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state()  # libraries draw from the global one
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": list(_flatten(random.getstate())),
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, gauss, *words = state["python"]
    random.setstate((version, tuple(words), gauss))


def _flatten(state: tuple[Any, ...]) -> list[Any]:
    version, words, gauss = state
    return [version, gauss, *words]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))


def _problem(path: Path) -> str | None:
    try:
        files = json.loads((path / _FILES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        return f"{_FILES}: {error}"
    if missing := [name for name in _REQUIRED if name not in files]:
        return f"{missing[0]} was never written"
    return damaged_file(path, files)


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    best = path / "best.safetensors"
    try:
        return Checkpoint(
            step=state.pop("step"),
            weights=load_tensors((path / "weights.safetensors").read_bytes()),
            optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
            rng=torch.load(path / "rng.pt", weights_only=True),
            state=state,
            best=load_tensors(best.read_bytes()) if best.is_file() else None,
        )
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{path} has the right files but cannot be read: {error}. Written by another version? Remove the folder "
            f"{path.parent.parent} to start this stage again"
        ) from error


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
