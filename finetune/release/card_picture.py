"""The card's picture: a lineage as Mermaid, with data, stages and base, and what each used the other as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.release.lineage import BECOMES, Lineage, Member

_CONTINUED = ("starts from it", "averaged", "policy", BECOMES)
"""Roles of a source that stands between a member and the base."""


def picture_of(lineage: Lineage) -> list[str]:
    """The lineage as Mermaid: data, stages, base, and what each used the other as."""
    number = {member.key: f"m{index}" for index, member in enumerate(lineage.members)}
    lines: list[str] = []
    data: dict[str, str] = {}
    bases: dict[str, str] = {}
    for member in lineage.members:
        manifest = member.manifest
        base = manifest["base"]
        place = bases.setdefault(base["digest"], f"b{len(bases)}")
        if place == f"b{len(bases) - 1}" and f"  {place}[" not in "".join(lines):
            at = f"<br/>commit {base['revision'][:12]}" if base["revision"] else ""
            lines.append(f'  {place}["{_quoted(base["name"])}{at}"]')
        shape = ('[("', '")]') if member.sampled else ('(["', '"])') if member == lineage.release else ('["', '"]')
        lines.append(f"  {number[member.key]}{shape[0]}{_quoted(member.label)}<br/>{manifest['kind']}{shape[1]}")
        if not any(link.target == member.key and link.role in _CONTINUED for link in lineage.links):
            lines.append(f"  {place} --> {number[member.key]}")
        for source in _own_sources(member):
            name = data.setdefault(source["digest"], f"d{len(data)}")
            drawn = f'[("{_quoted(source["source"])}<br/>{source["used"]:,} rows")]'
            lines.append(f"  {name}{drawn} --> {number[member.key]}")
    for link in lineage.links:
        role = f"|{_quoted(link.role)}|" if link.role else ""
        lines.append(f"  {number[link.source]} -->{role} {number[link.target]}")
    return ["```mermaid", "graph TD", *lines, "```", ""]


def _quoted(text: Any) -> str:
    return str(text).replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def _own_sources(member: Member) -> list[Mapping[str, Any]]:
    """Data from outside the recipe; rows of a stage are drawn as that stage."""
    data = member.manifest.get("data") or {}
    return [source for source in data.get("sources", ()) if not source["digest"].startswith("stage:")]
