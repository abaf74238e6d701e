"""Where a run comes from, as a picture: the base and every stage in order, arrows from what is read to what reads it.

A column, so that it is as readable on a phone as the longest recipe on a screen; arrows that pass over other stages run
in lanes to the left. What an arrow means is told in words under the stage, and by its dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.plan.manifest import read_manifest
from finetune.recipe.references import references
from finetune.reports.pieces import Html, text
from finetune.reports.words import capital, figures, kind_in_short

Manifest = Mapping[str, Any]

WIDTH, ROW, LANE, TOP = 420, 58, 13, 24
MOST_LANES = 130
"""Width of all lanes together, at most: in a recipe of many rounds they lie closer."""
ROLES = {
    "start_from": "starts from",
    "policy": "sampled from",
    "of": "averages",
    "reward": "judged by",
    "safety": "safety judged by",
    "earlier": "earlier samples of",
    "rows": "rows of",
    "base": "on",
    "becomes": "made from",
}
_WEIGHTS = ("start_from", "policy", "of", "base", "becomes")
"""Roles by which weights go on; the others are judgement and rows."""
_DASH = {"judgement": "6 4", "rows": "2 4"}
_LETTERS = 6.3
"""Width of a letter of 12, about, in the SVG's units."""


@dataclass(frozen=True)
class Node:
    """title, about, result: the lines of text beside it. known: whether its manifest was found. mark: it is meant."""

    title: str
    about: str = ""
    result: str = ""
    known: bool = True
    mark: bool = False


@dataclass(frozen=True)
class Edge:
    """source, target: numbers of nodes, the source above the target."""

    source: int
    target: int
    roles: tuple[str, ...]


def ancestors(folder: Path, manifest: Manifest) -> list[Manifest]:
    """The manifests that a run was made from, what is read before what reads it, and its own last.

    Stages of one recipe lie beside each other; what a merged folder was made from is in its own manifest. What is not
    found is left out: the picture has its name from who reads it.
    """
    beside: dict[str, Manifest] = {}
    for path in sorted(folder.parent.glob("*/manifest.json")):
        try:
            found = read_manifest(path.parent)
        except InputError:  # not what this run was made from, or else it is drawn as not found
            continue
        if found is not None and "fingerprint" in found:
            beside[str(found["fingerprint"])] = found
    order: dict[str, Manifest] = {}

    def visit(one: Manifest) -> None:
        key = str(one.get("fingerprint") or id(one))
        if key in order:
            return
        for source in one.get("made_from") or ():
            visit(source)
        for fingerprint in (one.get("inputs") or {}).values():
            if fingerprint in beside:
                visit(beside[fingerprint])
        order[key] = one

    visit(manifest)
    return list(order.values())


def lineage(manifests: Sequence[Manifest], *, marked: str | None = None) -> Html:
    """The picture of runs in order. marked: fingerprint of the one that the page is about."""
    nodes, edges = graph(manifests, marked)
    places = lanes(edges)
    lanes_used = 1 + max(places.values(), default=-1)
    lane = min(LANE, MOST_LANES / max(1, lanes_used))
    dot = round(16 + lane * lanes_used)
    beside = dot + 18
    drawn = [_arrow(edge, places.get(edge), dot, lane) for edge in edges]
    for at, node in enumerate(nodes):
        down = TOP + ROW * at
        room = int((WIDTH - beside) / _LETTERS)
        title = _cut(node.title, room - 12) + ("  ← this one" if node.mark else "")
        shape = (
            f'<path class="ft-2" d="M{dot - 6} {down - 6}h12v12h-12z" fill="currentColor" stroke="none"/>'
            if at == 0
            else f'<circle class="ft-1" cx="{dot}" cy="{down}" r="6" fill="currentColor" stroke="none"/>'
        )
        drawn.append(
            f'{shape}<text x="{beside}" y="{down + 2}" font-weight="600">{text(title)}</text>'
            f'<text class="ft-quiet" x="{beside}" y="{down + 18}">{text(_cut(node.about, room))}</text>'
            f'<text x="{beside}" y="{down + 34}">{text(_cut(node.result, room))}</text>'
        )
    height = TOP + ROW * len(nodes) - 8
    told = text("Lineage: " + "; ".join(f"{node.title}: {node.about}" for node in nodes))
    return Html(
        f'<svg class="ft-curve ft-lineage" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{told}" font-size="12" fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f"<title>Lineage</title>{''.join(drawn)}</svg>"
    )


def graph(manifests: Sequence[Manifest], marked: str | None = None) -> tuple[list[Node], list[Edge]]:
    """Nodes and edges, the base first, then what is not found, then the runs in order."""
    base = next((str(one["base"]["name"]) for one in manifests if one.get("base")), "base")
    nodes = [Node(base, "base")]
    numbers: dict[str, int] = {}
    known = {str(one.get("fingerprint")) for one in manifests}
    for one in manifests:
        for name, fingerprint in (one.get("inputs") or {}).items():
            if fingerprint not in known | set(numbers):
                numbers[fingerprint] = len(nodes)
                nodes.append(Node(name, "not found beside these runs", known=False))
    edges = []
    for one in manifests:
        at = len(nodes)
        found = _read_by(one, numbers)
        edges += [Edge(source, at, tuple(roles)) for source, roles in sorted(found.items())]
        fingerprint = str(one.get("fingerprint") or id(one))
        numbers[fingerprint] = at
        words = [
            " and ".join(ROLES.get(role, role) for role in roles) + f" {nodes[source].title if source else 'the base'}"
            for source, roles in sorted(found.items(), key=lambda entry: list(ROLES).index(entry[1][0]))
        ]
        main = figures(one)[:1]
        result = f"{capital(main[0].name)} {main[0]}" if main else ""
        name = str(one.get("stage") or one.get("name") or one.get("kind"))
        about = ", ".join(filter(None, [kind_in_short(one), *words]))
        nodes.append(Node(name, about, result, mark=marked is not None and fingerprint == marked))
    return nodes, edges


def lanes(edges: Iterable[Edge]) -> dict[Edge, int]:
    """The lane, from 0 beside the column, of every edge that passes over a node; the shorter ones lie further in."""
    taken: list[list[tuple[int, int]]] = []
    found = {}
    for edge in sorted(edges, key=lambda edge: (edge.target - edge.source, edge.source)):
        if edge.target == edge.source + 1:
            continue
        span = (edge.source, edge.target)
        free = (at for at, spans in enumerate(taken) if all(span[1] <= low or high <= span[0] for low, high in spans))
        lane = next(free, len(taken))
        taken += [[]] if lane == len(taken) else []
        taken[lane].append(span)
        found[edge] = lane
    return found


def _read_by(manifest: Manifest, numbers: Mapping[str, int]) -> dict[int, list[str]]:
    """What a run reads: numbers of nodes, and the roles of each."""
    found: dict[int, list[str]] = {}
    inputs = manifest.get("inputs") or {}
    for keys, name, _ in references(manifest.get("settings") or {}):
        if inputs.get(name) in numbers:
            roles = found.setdefault(numbers[inputs[name]], [])
            role = "rows" if keys[-1] == "stage" else str(keys[0])
            roles += [] if role in roles else [role]
    for fingerprint in inputs.values():  # of an older version, whose settings say it otherwise
        found.setdefault(numbers.get(fingerprint, 0), ["base" if fingerprint not in numbers else "start_from"])
    for source in manifest.get("made_from") or ():
        if str(source.get("fingerprint")) in numbers:
            found.setdefault(numbers[str(source["fingerprint"])], []).append("becomes")
    if not any(role in _WEIGHTS for roles in found.values() for role in roles):
        found.setdefault(0, []).append("base")
    return found


def _arrow(edge: Edge, place: int | None, dot: int, lane: float) -> str:
    begin, end = TOP + ROW * edge.source, TOP + ROW * edge.target
    sort = "weights" if set(edge.roles) & set(_WEIGHTS) else "rows" if "rows" in edge.roles else "judgement"
    kind = {"weights": 1, "judgement": 4, "rows": 3}[sort]
    dash = f' stroke-dasharray="{_DASH[sort]}"' if sort in _DASH else ""
    if place is None:
        line = f"M{dot} {begin + 8}V{end - 12}"
        head = f"M{dot - 4} {end - 15}h8l-4 7z"
    else:
        along = round(dot - 14 - lane * place)
        line = f"M{dot - 8} {begin + 3}H{along + 6}Q{along} {begin + 3} {along} {begin + 9}V{end - 9}"
        line += f"Q{along} {end - 3} {along + 6} {end - 3}H{dot - 14}"
        head = f"M{dot - 15} {end - 7}v8l7 -4z"
    colour = f'class="ft-{kind}"'
    return (
        f'<path {colour} d="{line}" fill="none" stroke="currentColor" stroke-width="1.6"{dash}/>'
        f'<path {colour} d="{head}" fill="currentColor" stroke="none"/>'
    )


def _cut(content: str, room: int) -> str:
    return content if len(content) <= room else content[: room - 1] + "…"
