"""The picture of rejection sampling: what the best of k samples scores, against how far it is from the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.numerics.best_of import BestOf
from finetune.reports.pictures import CHOSEN, Format, note, render
from finetune.reports.words import counted


def best_of_picture(curve: Sequence[BestOf], *, prompts: int, score: str, format: Format = "svg") -> bytes:
    """Mean best-of-k score against the KL bound log k - (k - 1) / k, a point for each k, with 95 % intervals over
    prompts. score: what the score is, for the axis."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        at, means = [point.kl for point in curve], [point.mean for point in curve]
        for point in curve:
            if point.error is not None:
                low, high = point.mean - 1.96 * point.error, point.mean + 1.96 * point.error
                axes.plot([point.kl, point.kl], [low, high], color=CHOSEN, linewidth=1.5, alpha=0.55)
        axes.plot(at, means, "o-", color=CHOSEN, linewidth=1.8, markersize=6)
        for point in curve:
            axes.annotate(
                f"k = {point.k}", (point.kl, point.mean), (-4, 8), textcoords="offset points", ha="right", fontsize=9
            )
        axes.set(title="Best of k", xlabel="KL to the policy, at most (nats)", ylabel=f"mean best {score}")
        axes.set_xmargin(0.12)
        axes.set_ymargin(0.16)
        axes.autoscale_view()
        note(axes, f"{counted(prompts, 'prompt')}, {counted(curve[-1].k, 'sample')} each\n95 % intervals over prompts")

    return render(draw, "Best of k", format, (5.6, 3.8))
