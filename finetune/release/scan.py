"""What must not go up: keys and tokens, and paths, user and machine names of the place where a model was made.

Two ways, in this order. `without_private_paths` takes absolute paths out of what we write ourselves (manifests), down
to their last name. `scan` then reads every text that would be uploaded, whoever wrote it, and names what it finds by
file and line; nothing goes up until there is nothing to find. A secret itself is never shown whole.
"""

from __future__ import annotations

import getpass
import json
import math
import re
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import InputError

Content = Path | bytes
"""A file to upload: where it lies, or what is in it."""

LISTED = 10
"""How many findings a message names; the rest are counted."""
_RANDOM = "what looks like a key"
_LEAST_ENTROPY = 3.5
"""Bits a character. Words and numbers in clear stay below it; keys of 16 and more random characters lie above it."""
_BINARY = (".safetensors", ".gguf", ".model", ".png", ".npy")
_GGUF_HEAD_BYTES = 2**24
"""Where a GGUF keeps its metadata: a 128 K vocabulary with merges takes about 8 MiB."""

_SECRETS = (
    ("a Hugging Face token", ("hf_",), r"\bhf_[A-Za-z0-9]{30,}"),
    ("a Weights & Biases key", ("wandb_v1_",), r"\bwandb_v1_\w{40,}"),
    ("a Weights & Biases key", ("wandb", "WANDB"), r"(?i:wandb)\w*[\"']?\s*[:=]\s*[\"']?[0-9a-f]{40}\b"),
    ("an AWS key", ("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a private key", ("PRIVATE KEY",), r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"),
    ("an API key", ("sk-",), r"\bsk-(?:[a-z]+-)*[A-Za-z0-9_-]{20,}"),
    ("a GitHub token", ("gho_", "ghp_", "ghr_", "ghs_", "ghu_"), r"\bgh[oprsu]_[A-Za-z0-9]{36}"),
    ("a GitHub token", ("github_pat_",), r"\bgithub_pat_\w{40,}"),
    ("a GitLab token", ("glpat-",), r"\bglpat-[\w-]{20,}"),
    ("a Slack token", ("xox",), r"\bxox[abeoprs]-[A-Za-z0-9-]{20,}"),
    ("a Google API key", ("AIza",), r"\bAIza[\w-]{35}"),
    ("a signed web token", ("eyJ",), r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    ("a password in an address", ("://",), r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"']+:[^\s/@\"']{3,}@"),
)
"""What it is; texts of which every such key has one, which are looked for first, for speed; and its form."""
_ASSIGNMENT = re.compile(
    r"(?i)(?:api[_-]?key|access[_-]?key|secret|token|passw(?:or)?d|credentials?)[\"']?\s*[:=]\s*[\"']?"
    r"([A-Za-z0-9+/_.~-]{16,})={0,2}"
)
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})([A-Za-z0-9][\w.-]*)|(?<![\w.-])/root/[\w.-]+")
_HOMES = ("/home/", "/Users/", "\\Users\\", "/root/")
_NOBODY = {"user", "username", "you", "your", "yourname", "name", "me", "runner", "ubuntu", "jovyan", "shared"}
"""Names in example paths, in containers and on rented machines: they tell nothing of anybody."""
_PATH = re.compile(r"(?<![\w:/.<\\])(?:~|[A-Za-z]:(?=[\\/]))?(?:[\\/][^\s\"'\\/:=,;()<>]+)+[\\/]")
"""The folders of an absolute path, up to its last separator. Not in web addresses or in relative paths."""
_COMMON_USERS = _NOBODY | {"root", "admin", "test", "build", "nobody", "docker"}


@dataclass(frozen=True)
class Finding:
    """what: in words. text: what was found; shown in part when it is a key. is_key: for certain; random text is only
    taken for one."""

    file: str
    line: int
    what: str
    text: str
    is_key: bool = False

    def __str__(self) -> str:
        shown = f"{self.text[:6]}…" if self.is_key or self.what == _RANDOM else self.text
        return f"{self.file}:{self.line}: {self.what}: {shown}"


@dataclass(frozen=True)
class Here:
    """Names of this machine that nobody else should read: home folder, user, host; None where they tell nothing."""

    home: str | None
    user: str | None
    host: str | None


def this_machine() -> Here:
    """The names of the machine that this process runs on."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry, as in some containers
        user = ""
    home, host = str(Path.home()), socket.gethostname().split(".")[0]
    return Here(
        home if home.count("/") > 1 or "\\" in home else None,
        user if len(user) > 3 and user.lower() not in _COMMON_USERS else None,
        host if len(host) > 5 and host.lower() != "localhost" else None,
    )


def without_private_paths(value: Any) -> Any:
    """JSON with every absolute path cut to its last name; relative paths and web addresses stay as they are."""
    if isinstance(value, Mapping):
        return {without_private_paths(key): without_private_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_private_paths(item) for item in value]
    return _PATH.sub("", value.rstrip("/") if _PATH.match(value) else value) if isinstance(value, str) else value


def scan(files: Mapping[str, Content], *, allowed: Collection[str] = (), here: Here | None = None) -> list[Finding]:
    """Everything in `files` that must not go up. allowed: found texts that are meant to be public; never known keys."""
    here = here or this_machine()
    found = []
    for name, content in files.items():
        for number, line in enumerate(_lines(name, content), start=1):
            # A tokenizer's words are many enough to hold anybody's name by chance.
            names = None if Path(name).name in ("tokenizer.json", "vocab.json") or name.endswith(".gguf") else here
            found += [f for f in _in_line(name, number, line, here, names) if f.is_key or f.text not in allowed]
    return found


def refuse_findings(findings: list[Finding]) -> None:
    """Raises InputError that names file and line of each finding."""
    if not findings:
        return
    lines = [str(finding) for finding in findings[:LISTED]]
    if len(findings) > LISTED:
        lines.append(f"and {len(findings) - LISTED:,} more")
    raise InputError(
        "nothing was uploaded, for these files hold what should stay private:\n"
        + "\n".join(f"  {line}" for line in lines)
        + "\nRemove it where it comes from; a key that was in a file is best revoked. What is meant to be public "
        "goes up with --allow TEXT, the text as it stands there; a key never does"
    )


def _in_line(file: str, number: int, line: str, here: Here, names: Here | None) -> Iterator[Finding]:
    for what, marks, form in _SECRETS:
        if any(mark in line for mark in marks):
            for match in re.finditer(form, line):
                yield Finding(file, number, what, match[0], True)
    for match in _ASSIGNMENT.finditer(line):
        if _looks_random(match[1]):
            yield Finding(file, number, _RANDOM, match[1])
    if here.home and here.home in line and not _HOME.search(here.home):
        yield Finding(file, number, "your home folder", here.home)
    for match in _HOME.finditer(line) if any(mark in line for mark in _HOMES) else ():
        if (match[1] or "").lower() not in _NOBODY:
            yield Finding(file, number, "a private path", match[0])
    if names is not None:
        for what, name in (("your user name", names.user), ("this machine's name", names.host)):
            if name and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line):
                yield Finding(file, number, what, name)


def _looks_random(text: str) -> bool:
    """Letters and digits, no two alike in a regular way: what generators of keys write and people do not."""
    if not (re.search(r"[A-Za-z]", text) and re.search(r"\d", text)):
        return False
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) >= _LEAST_ENTROPY


def _lines(name: str, content: Content) -> Iterator[str]:
    """The text of a file, line by line; of weights the texts in their headers; of other binary files nothing."""
    suffix = Path(name).suffix.lower()
    if suffix in (".safetensors", ".gguf"):
        yield from _header(content, suffix)
    elif suffix not in _BINARY:
        raw = content if isinstance(content, bytes) else content.read_bytes()
        if b"\0" not in raw[:8192]:
            yield from raw.decode("utf-8", errors="replace").splitlines()


def _header(content: Content, suffix: str) -> Iterator[str]:
    if isinstance(content, bytes):
        head = content[:_GGUF_HEAD_BYTES]
    else:
        with content.open("rb") as file:
            head = file.read(_GGUF_HEAD_BYTES)
    if suffix == ".gguf":
        yield head.decode("latin-1").replace("\n", " ")
        return
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    try:
        header = json.loads(head[8 : 8 + length])
    except ValueError:
        return
    yield json.dumps(header.get("__metadata__", {}))
