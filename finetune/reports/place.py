"""Where a page goes, and how it gets there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from finetune.durable import rename_file, write_bytes
from finetune.errors import InputError

_LONGEST_START = 3.0
"""Seconds in which a program that opens pages has failed, if it fails; one that goes on is the browser itself."""


def check_place(place: Path) -> Path:
    """The place itself, where a page may stand. Raises InputError: a folder, inside a finished run, another file."""
    if place.is_dir():
        raise InputError(f"{place} is a folder: give the file a name")
    if not place.parent.is_dir():
        raise InputError(f"{place}: there is no folder {place.parent}; make it first")
    if (place.parent / "manifest.json").is_file():
        raise InputError(f"{place.parent} is a finished run, whose files do not change: choose another folder")
    if place.exists() and not place.read_bytes()[:64].lower().startswith(b"<!doctype html"):
        raise InputError(f"{place} is there, and is no page: choose another name")
    return place


def write_page(place: Path, page: str) -> None:
    """Write a page, whole or not at all. Raises InputError where it may not be written."""
    part = place.with_name(f"{place.name}.part")
    try:
        write_bytes(part, page.encode())
    except PermissionError as error:
        raise InputError(f"{place} cannot be written ({error.strerror}): choose another place") from error
    rename_file(part, place)


def open_page(place: Path) -> bool:
    """Show a page in this machine's browser, none of whose messages get through. False: there is none that starts."""
    address = place.resolve().as_uri()
    if sys.platform == "win32":
        command = ["rundll32", "url.dll,FileProtocolHandler", address]
    else:
        command = ["open" if sys.platform == "darwin" else "xdg-open", address]
    if shutil.which(command[0]) is None:
        return False
    quiet = subprocess.DEVNULL
    started = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        return started.wait(_LONGEST_START) == 0
    except subprocess.TimeoutExpired:
        return True
