"""Curves of a stage that is still running, from its own log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from finetune.notebook.page import side_by_side
from finetune.reports.curves import curve, thinned
from finetune.reports.pieces import Html, join

_PICTURES: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("Loss", "loss", ("loss", "held_out_loss")),
    ("Reward", "mean score", ("reward", "held_out_reward")),
    ("KL to the reference", "nats an answer", ("kl", "held_out_kl")),
    ("Score of samples", "mean score", ("score", "best")),
    ("Accuracy on comparisons", "share", ("accuracy", "held_out_accuracy")),
)
"""(title, axis, names in metrics.jsonl): the curves that are drawn, of the first four that a stage has."""
_DRAWN = frozenset(name for _, _, names in _PICTURES for name in names)
_MOST_POINTS = 2000
"""Of a curve; what comes beyond is thinned to what a picture can show."""


class Growing:
    """The running stage's curves, read from its metrics.jsonl as it grows: what an earlier session logged, too."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0
        self.points: dict[str, list[tuple[float, float]]] = {}

    def update(self) -> None:
        """Read what has been added, as far as its last line is whole."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.read)
            added, newline, _ = file.read().rpartition(b"\n")
        self.read += len(added) + len(newline)
        for line in added.splitlines():
            metrics = json.loads(line)
            for name in _DRAWN & metrics.keys():
                if isinstance(metrics[name], int | float):
                    points = self.points.setdefault(name, [])
                    points.append((float(metrics["step"]), float(metrics[name])))
                    if len(points) > _MOST_POINTS:
                        points[:] = thinned(points)

    def html(self) -> Html:
        drawn = []
        for title, y, names in _PICTURES:
            lines = {name.replace("_", " "): self.points[name] for name in names if name in self.points}
            if lines:
                drawn.append(curve(lines, title=title, x="step", y=y))
        return side_by_side(join(drawn[:4]))
