"""Which sampled answers are kept: the best of each prompt, all above a threshold, or the best against the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.recipe.sampling_stages import RejectStage

Reason = Literal["unfinished", "blank", "duplicate"]


@dataclass(frozen=True)
class Candidate:
    """An answer that may be kept."""

    text: str
    score: float
    finished: bool


@dataclass(frozen=True)
class Choice:
    """Of one prompt's answers. kept: indices, the best first; of a pair (better, worse). lost: why others could not be
    kept, None where they could."""

    kept: tuple[int, ...]
    lost: tuple[Reason | None, ...]


def choose(stage: RejectStage, answers: Sequence[Candidate]) -> Choice:
    """Choose by the stage's settings. Of equal scores the earlier answer is the better one."""
    lost = _lost(stage, answers)
    usable = [index for index, why in enumerate(lost) if why is None]
    ranked = sorted(usable, key=lambda index: (-answers[index].score, index))
    if stage.keep == "pairs":
        return Choice(_pair(stage, answers, ranked), lost)
    good = [index for index in ranked if stage.threshold is None or answers[index].score >= stage.threshold]
    return Choice(tuple(good if stage.keep == "above" else good[: stage.best_n]), lost)


def _pair(stage: RejectStage, answers: Sequence[Candidate], ranked: Sequence[int]) -> tuple[int, ...]:
    if not ranked:
        return ()
    best = answers[ranked[0]]
    if stage.threshold is not None and best.score < stage.threshold:
        return ()
    for index in reversed(ranked[1:]):
        gap = best.score - answers[index].score
        if gap <= 0.0 or gap < stage.min_gap:
            return ()
        if _squeezed(answers[index].text) != _squeezed(best.text):  # or they would compare nothing
            return ranked[0], index
    return ()


def _lost(stage: RejectStage, answers: Sequence[Candidate]) -> tuple[Reason | None, ...]:
    found: list[Reason | None] = []
    seen: set[str] = set()
    for answer in answers:
        if stage.unfinished == "drop" and not answer.finished:
            found.append("unfinished")
        elif not answer.text.strip():
            found.append("blank")  # no row can hold it
        elif stage.duplicates == "drop" and answer.text in seen:
            found.append("duplicate")
        else:
            found.append(None)
            seen.add(answer.text)
    return tuple(found)


def _squeezed(text: str) -> str:
    return "".join(text.split())
