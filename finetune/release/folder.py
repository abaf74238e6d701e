"""A released folder, made like a run: in `<out>.part`, proven, flushed, the manifest last, one rename."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from finetune.durable import describe_files, is_disk_full, rename, sync_tree
from finetune.errors import DiskFullError, InputError, RunBusyError
from finetune.plan.manifest import read_manifest, write_manifest

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers", "safetensors", "gguf", "finetune")


def make_folder(out: Path, fill: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Let `fill` write into `<out>.part` and return the manifest's content; then finish the folder.

    Returns the manifest. Whatever `fill` raises, nothing is left behind. Raises InputError where `out` is in the way,
    RunBusyError while another process writes it, DiskFullError.
    """
    out = out.absolute()
    part = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out.parent} cannot be made: {error.strerror}") from error
    with _lock(out):
        if out.exists():
            raise InputError(f"--out: {out} is there already: give another name, or move it away")
        began = time.time()
        try:
            if part.exists():  # of a process that was killed
                shutil.rmtree(part)
            part.mkdir()
            content = fill(part)
            sync_tree(part)
            manifest = {
                **content,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.time() - began, 1),
                "environment": _environment(),
                "files": describe_files(part),
            }
            write_manifest(part, manifest)
            rename(part, out)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if isinstance(error, OSError | RuntimeError | SafetensorError) and is_disk_full(error):
                raise DiskFullError(
                    f"the disk is full: {out} could not be written, and nothing is left of it"
                ) from error
            raise
    return dict(read_manifest(out) or {})


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "hardware": f"{os.cpu_count()} CPU cores",
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Two processes cannot write one folder; the lock dies with its process."""
    path = out.with_name(out.name + ".lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(f"another process is writing {out}: wait for it, or stop it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)
