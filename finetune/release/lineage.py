"""Where a release comes from: its manifest, and those of the runs that it was made from, back to the base.

Runs of one recipe lie beside each other and name what they read by fingerprint; merged and exported folders hold the
manifests of what they were made from; a published folder holds its lineage in `lineage/`. Rows that a model sampled
are known by the sha256 of their file too, so they are found again when another recipe reads them as a plain file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.plan.manifest import FILE, read_manifest

Manifest = Mapping[str, Any]

FOLDER = "lineage"
"""Where a published folder keeps the manifests of what it was made from."""
ROWS = "rows"
"""The role of sampled rows that a stage trained on."""
BECOMES = "becomes"
"""The role of a run that was merged, and of a model that was exported."""
_ROLES = {"start_from": "starts from it", "stage": ROWS, "of": "averaged"}
"""What the recipe's keys are called in a lineage; the others, such as reward and policy, by their own names."""


@dataclass(frozen=True)
class Member:
    """A run, or what was merged or exported from one. folder: where it lies, None where only its manifest is known."""

    manifest: Manifest
    folder: Path | None

    @property
    def key(self) -> str:
        return key_of(self.manifest)

    @property
    def label(self) -> str:
        return str(self.manifest.get("name") or self.manifest["kind"])

    @property
    def sampled(self) -> bool:
        """Whether it is rows that a model wrote."""
        return self.manifest["kind"] == "reject"


@dataclass(frozen=True)
class Link:
    """source and target: keys of members; role: what the target used the source as."""

    source: str
    target: str
    role: str


@dataclass(frozen=True)
class Lineage:
    """members: what is read before what reads it; the last is the release itself. links: between them."""

    members: tuple[Member, ...]
    links: tuple[Link, ...]

    @property
    def release(self) -> Member:
        return self.members[-1]

    def made_with_outputs_of(self) -> list[Member]:
        """The members whose rows went into the training of a later one."""
        trained_on = {link.source for link in self.links if link.role == ROWS}
        return [member for member in self.members if member.sampled and member.key in trained_on]


def trace(folder: Path, manifest: Manifest, runs: Path) -> Lineage:
    """Follow a release back. runs: where runs are kept, besides those that lie beside `folder`.

    Raises InputError where a run that it was made from is nowhere to be found: what is not known cannot be released.
    """
    known = _known(folder, runs)
    rows = {
        entry["sha256"]: member
        for member in known.values()
        if member.sampled
        for entry in member.manifest.get("files", {}).values()
    }
    members: dict[str, Member] = {}
    links: dict[Link, None] = {}

    def visit(member: Member) -> None:
        if member.key in members:
            return
        for source, role in _sources(member, known, rows):
            visit(source)
            links[Link(source.key, member.key, role)] = None
        members[member.key] = member

    visit(Member(manifest, folder))
    order = list(members)
    in_order = sorted(links, key=lambda link: (order.index(link.target), order.index(link.source), link.role))
    return Lineage(tuple(members.values()), tuple(in_order))


def key_of(manifest: Manifest) -> str:
    """What identifies a manifest: the run's fingerprint, or else a sha256 of what it says it was made of."""
    if fingerprint := manifest.get("fingerprint"):
        return str(fingerprint)
    content = {key: value for key, value in manifest.items() if key not in ("format", "files", "published", "card")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sources(member: Member, known: Mapping[str, Member], rows: Mapping[str, Member]) -> Iterator[tuple[Member, str]]:
    manifest = member.manifest
    for made_from in manifest.get("made_from", ()):
        yield known.get(key_of(made_from), Member(made_from, None)), BECOMES
    if manifest.get("made_from"):
        return  # its runs say the rest
    for name, fingerprint in manifest.get("inputs", {}).items():
        if fingerprint not in known:
            raise InputError(
                f"{member.label} was made from stage {name} ({name}-{fingerprint[:12]}), whose manifest is not beside "
                "it: without it, nobody can say what the release is made of. Put that run's folder back (its "
                "manifest.json is enough), or say with --runs where runs are kept"
            )
        for role in _roles(manifest, name) or [""]:
            yield known[fingerprint], role
    for source in (manifest.get("data") or {}).get("sources", ()):
        digest = str(source["digest"]).removeprefix("sha256:")
        if digest in rows and rows[digest].key != member.key:
            yield rows[digest], ROWS


def _roles(manifest: Manifest, name: str) -> list[str]:
    """What a stage used one of its inputs as, from its settings in the recipe."""
    settings = manifest["recipe"]["stages"].get(manifest["stage"], {})

    def named(value: Any, key: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for inner, item in value.items():
                yield from named(item, inner)
        elif isinstance(value, list):
            for item in value:
                yield from named(item, key)
        elif value == name and key not in ("kind", "path", "hub"):
            yield _ROLES.get(key, key)

    return list(dict.fromkeys(named(settings, "")))


def _known(folder: Path, runs: Path) -> dict[str, Member]:
    """Every manifest that lies near, by its key. Of copies the one with a folder of its own counts."""
    known: dict[str, Member] = {}
    for path in sorted((folder / FOLDER).glob("*.json")):
        member = Member(json.loads(path.read_text(encoding="utf-8")), None)
        known[member.key] = member
    places = {
        path.parent
        for root, pattern in ((folder.parent, "*"), (runs, "*/*"))
        for path in root.glob(f"{pattern}/{FILE}")
    }
    for place in sorted(places):
        if not place.name.endswith(".part") and place != folder and (found := _read(place)) is not None:
            known[found.key] = found
    return known


def _read(place: Path) -> Member | None:
    """The run in a folder nearby. Other programs' files are called manifest.json too: those are passed by."""
    try:
        manifest = read_manifest(place)
    except InputError:
        return None
    return None if manifest is None or "kind" not in manifest else Member(manifest, place)
