"""What `finetune eval` measured of a run and kept in it, for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.plan.evaluations import Evaluation
from finetune.reports.pieces import Html, join, number, table, text
from finetune.reports.read import FinishedRun
from finetune.reports.results import box, is_figure, is_number, told
from finetune.reports.words import counted, lasted, percent

_SHARES = ("win_rate", "ifeval", "gsm8k")
"""Tasks whose figures are shares."""
_HEADINGS = ("figure", "value", "95 % interval")


def evaluations(run: FinishedRun) -> Html:
    """All evaluations of a run but its answers, the oldest first."""
    return join(_evaluation(one) for one in run.evaluations if one.task != "answers")


def _evaluation(found: Evaluation) -> Html:
    """A table of the figures, the other numbers in a line, and groups, such as kinds of instructions, folded."""
    as_share = found.task in _SHARES
    groups: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    for name, value in found.results.items():
        (groups if isinstance(value, Mapping) and not is_figure(value) else alone)[name] = value
    if found.against and "difference" in alone:  # which way it goes is part of what it says
        named = {"difference": f"this run minus {found.against.get('name')}"}
        alone = {named.get(name, name): value for name, value in alone.items()}
    rows = _rows(alone, as_share)
    line = ", ".join(f"{name} {value}" for name, value in told({k: v for k, v in alone.items() if not is_figure(v)}))
    shown = table(_HEADINGS, rows, caption=_title(found), numeric=(1, 2)) if rows else f"<p>{text(_title(found))}</p>"
    folded = [box(name.replace("_", " "), _group(group, as_share)) for name, group in groups.items()]
    return join([Html(shown), Html(f'<p class="ft-quiet">{text(line)}</p>') if line else "", *folded])


def _title(found: Evaluation) -> str:
    """What was measured, on what, against and by whom, and when."""
    judge = found.settings.get("judge")
    by = judge.get("name") or judge.get("model") if isinstance(judge, Mapping) else judge
    parts = [f"{found.task.replace('_', ' ')} on {found.data.get('name')}"]
    parts += [counted(found.data["rows"], "row")] if isinstance(found.data.get("rows"), int) else []
    parts += [f"against {found.against.get('name')}"] if found.against else []
    parts += [f"judged by {by}"] if by else []
    return ", ".join([*parts, f"made {found.made[:16].replace('T', ' ')} in {lasted(found.seconds)}"])


def _group(group: Mapping[str, Any], as_share: bool) -> Html:
    others = told({name: value for name, value in group.items() if not is_figure(value)})
    rows = [*_rows(group, as_share), *((name, value, None) for name, value in others)]
    return table(_HEADINGS, rows, numeric=(1, 2))


def _rows(results: Mapping[str, Any], as_share: bool) -> list[tuple[str, str, str | None]]:
    """Name, value and interval, as text, of the figures; shares as percentages."""
    shown = percent if as_share else number
    found = []
    for name, value in results.items():
        if is_figure(value):
            low, high = value.get("low"), value.get("high")
            interval = f"{shown(float(low))} to {shown(float(high))}" if is_number(low) and is_number(high) else None
            found.append((name.replace("_", " "), shown(float(value["value"])), interval))
    return found
