"""What came out of a stage, in few words: for `finetune show`, and for the summary at the end of `finetune run`.

Each kind has metrics of its own, and a stage that has not one of them simply says nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.engine.progress import duration

_LOOP_KEYS = frozenset({
    "steps", "stopped_early", "unit", "tokens", "units", "seconds", "tokens_per_second", "first_loss", "last_loss",
    "first_held_out", "held_out", "best_held_out", "best_step", "measurements_since_best", "first_held_out_metrics",
    "held_out_metrics", "last",
})  # fmt: skip
"""What the training loop reports of every kind; `lines` has words for these."""
_BEFORE_AFTER = (("_before", "_after"), ("_first", "_last"))
"""Endings of two metrics that are one figure at two times."""


def main_figures(kind: str, manifest: Mapping[str, Any]) -> str:
    """The figures that say whether a stage did its work, as one short text."""
    metrics = manifest.get("metrics") or {}
    words = []
    if kind in ("sft", "dpo", "reward"):
        words += _change("loss", metrics, "first_loss", "last_loss")
        words += _change("held out", metrics, "first_held_out", "held_out")
    if kind in ("dpo", "reward"):
        name = "accuracy"
        before, after = (metrics.get(key) or {} for key in ("first_held_out_metrics", "held_out_metrics"))
        words += _change(name, {"before": before.get(name), "after": after.get(name)}, "before", "after", ".3f")
    if kind in ("ppo", "grpo", "rloo"):
        held_out = "held_out_reward_after" in metrics
        for name in ("reward", "kl"):
            keys = (
                (f"held_out_{name}_before", f"held_out_{name}_after") if held_out else (f"{name}_first", f"{name}_last")
            )
            shown = "KL" if name == "kl" else name
            words += _change(f"held-out {shown}" if held_out else shown, metrics, *keys, ".3f")
    if kind == "reject" and metrics.get("best_of"):
        words += [f"best of {k} {mean:.3f}" for k, mean in _ends(metrics["best_of"])]
        words += [f"kept {metrics['kept']:,} with {metrics['kept_score']:.3f}"] if metrics.get("kept") else []
    return ", ".join(words) or ", ".join(" ".join(line.split()) for line in _others(metrics, short=True))


def lines(metrics: Mapping[str, Any]) -> list[str]:
    """All that a stage reports, a line for each thing."""
    found = []
    if metrics.get("steps") is not None:
        found.append(f"steps       {metrics['steps']}{', stopped early' if metrics.get('stopped_early') else ''}")
    if metrics.get("first_loss") is not None and metrics.get("last_loss") is not None:
        first, last = metrics["first_loss"], metrics["last_loss"]
        found.append(f"loss        {first:.4f} at the first step, {last:.4f} at the last")
    if metrics.get("held_out") is not None and metrics.get("first_held_out") is not None:
        best = metrics.get("best_held_out")
        more = "" if best is None else f", best {best:.4f} at step {metrics.get('best_step')}"
        found.append(f"held out    {metrics['first_held_out']:.4f} before, {metrics['held_out']:.4f} after{more}")
    if metrics.get("tokens") and metrics.get("seconds"):
        speed = metrics["tokens"] / max(metrics["seconds"], 1e-9)
        units = f"; {metrics['units']:,} {metrics['unit']}" if metrics.get("units") and metrics.get("unit") else ""
        found.append(f"seen        {metrics['tokens']:,} tokens, {speed:,.0f} a second{units}")
    for when, key in (("held out", "held_out_metrics"), ("last step", "last")):
        if metrics.get(key):
            found.append(f"{when:<12}" + ", ".join(f"{name} {_text(value)}" for name, value in metrics[key].items()))
    return found + list(_others(metrics))


def _ends(best_of: Mapping[str, float]) -> list[tuple[str, float]]:
    """The smallest and the largest k of a curve."""
    points = sorted(best_of.items(), key=lambda point: int(point[0]))
    return points if len(points) < 2 else [points[0], points[-1]]


def _others(metrics: Mapping[str, Any], *, short: bool = False) -> Iterator[str]:
    """Metrics that are a kind's own: two times of one figure in one line, numbers as they are; short: numbers alone."""
    shown = set(_LOOP_KEYS)
    for name, value in metrics.items():
        if name in shown or value is None or value in ({}, []):
            continue
        pair = _partner(name, metrics)
        if pair is not None:
            first, last = pair
            shown |= {first, last}
            stem = first.rpartition("_")[0]
            yield f"{stem + ' ':<12}{_text(metrics[first])} -> {_text(metrics[last])}"
        elif isinstance(value, Mapping):
            if not short:
                yield f"{name + ' ':<12}" + ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
        elif isinstance(value, list):
            if not short:
                yield f"{name + ' ':<12}" + ", ".join(map(_text, value))
        else:
            yield f"{name + ' ':<12}{_text(value)}"


def _partner(name: str, metrics: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two keys of a figure that was measured twice, where `name` is one of them."""
    for first, last in _BEFORE_AFTER:
        for ending in (first, last):
            stem = name.removesuffix(ending)
            keys = (stem + first, stem + last)
            if stem != name and all(metrics.get(key) is not None for key in keys):
                return keys
    return None


def _change(word: str, metrics: Mapping[str, Any], first: str, last: str, form: str = ".4f") -> list[str]:
    before, after = metrics.get(first), metrics.get(last)
    return [] if before is None or after is None else [f"{word} {before:{form}} -> {after:{form}}"]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_text(entry)}" for key, entry in value.items()) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def summary_table(rows: list[tuple[str, str, str, float | None, str]], total: float) -> str:
    """A Markdown table of (stage, kind, state, seconds, figures), which reads well as plain text too.

    total: seconds of the walk.
    """
    cells = [("stage", "kind", "state", "time", "figures")]
    cells += [(*row[:3], "" if row[3] is None else duration(row[3]), row[4]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, *body = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    )
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([head, rule, *body, "", f"this walk took {duration(total)}"])
