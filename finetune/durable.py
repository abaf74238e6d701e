"""Files and folders that survive a crash: flushed to the disk, hashed, and named only when they are complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune.errors import DiskFullError


def write_bytes(path: Path, content: bytes) -> None:
    """Write and flush to the disk. Not atomic by itself: write into a folder that is renamed when it is complete."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that `path` holds either what it held before or all of the new text."""
    part = path.with_name(path.name + ".part")
    write_bytes(part, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
    os.replace(part, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`; for files that a library wrote."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def rename(part: Path, final: Path) -> None:
    """Give a complete folder its name, in one step that survives a crash."""
    os.rename(part, final)
    sync_folder(final.parent)


def rename_file(part: Path, final: Path) -> None:
    """Flush a complete file and give it its name, in place of what was there."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, final)
    sync_folder(final.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path, *, leave_out: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """{relative path: {size in bytes, sha256}} of all files below `folder`, sorted."""
    hidden = set(leave_out)
    return {
        name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in hidden
    }


def damaged_file(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """The first file that is missing or not what `describe_files` recorded, and why; None when all are right."""
    for name, recorded in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != recorded["size"]:
            return f"{name} has {path.stat().st_size} bytes, {recorded['size']} were written"
        if sha256(path) != recorded["sha256"]:
            return f"{name} has another sha256 than was written"
    return None


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFullError unless `needed` bytes are free where `folder` lies (it need not exist yet)."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DiskFullError(
            f"{what} needs about {needed / 2**20:,.0f} MiB in {folder}, but only {free / 2**20:,.0f} MiB are free: "
            "free some space, or give another place with --runs"
        )


def is_disk_full(error: BaseException) -> bool:
    """True for 'no space left' in any of the forms that Python, safetensors and torch raise it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)
