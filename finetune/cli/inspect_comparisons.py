"""Comparisons in `finetune inspect`: the prompt once, then every answer, best first, with what of it is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finetune.cli.painting import head, painted
from finetune.shapes import RATINGS

if TYPE_CHECKING:
    from rich.console import Console

    from finetune.data.comparisons import Comparisons
    from finetune.data.prepare_preference import PreparedComparisons
    from finetune.data.tokenizer import Tokenizer


def comparison_json(prepared: PreparedComparisons, group: int) -> dict[str, object]:
    """One comparison; answers best first. margin, rating, desirable: null where the row has none."""
    found = prepared.comparisons
    answers = [found.rows.row(row) for row in found.group(group)]
    return {
        "row": found.origin_of(group),
        "answers": [{"input_ids": ids.tolist(), "trained": trained.tolist()} for ids, trained in answers],
        "dropped": prepared.dropped[group],
        "margin": _margin(found, group),
        "rating": _rating(found, group),
        "desirable": _desirable(found, group),
    }


def show_comparison(
    prepared: PreparedComparisons, group: int, tokenizer: Tokenizer, console: Console, colour: bool
) -> None:
    """The tokens that the answers share, then the rest of each."""
    from rich.text import Text

    found = prepared.comparisons
    number = found.origin_of(group)
    answers = [found.rows.row(row) for row in found.group(group)]
    shared = _shared(found, group)
    margin, rating = _margin(found, group), _rating(found, group)
    about = [f"{prepared.origins[number]}: {len(answers)} answer{'s' if len(answers) > 1 else ''}"]
    about += [f"margin {margin:g}"] if margin is not None else []
    about += [f"rating {rating.replace('_', ' ')}"] if rating is not None else []
    console.print(head(number, ", ".join(about), prepared.dropped[group], colour), soft_wrap=True)
    ids, trained = answers[0]
    console.print(painted(ids[:shared].tolist(), trained[:shared].tolist(), tokenizer, colour), soft_wrap=True)
    for place, (ids, trained) in enumerate(answers):
        if (good := _desirable(found, group)) is not None:
            name = "desirable" if good else "undesirable"
        else:
            name = ("chosen", "rejected")[place] if len(answers) == 2 else f"{place + 1} of {len(answers)}"
        line = f"-- {name}: {len(ids):,} tokens, {int(trained.sum()):,} scored"
        console.print(Text(line, "bold" if colour else ""), soft_wrap=True)
        console.print(painted(ids[shared:].tolist(), trained[shared:].tolist(), tokenizer, colour), soft_wrap=True)


def _shared(found: Comparisons, group: int) -> int:
    """Leading tokens that all answers of a group have in common, none of them an answer's."""
    rows = found.group(group)
    length = int(found.prompt_lengths[list(rows)].min())
    first = found.rows.row(rows[0])[0][:length]
    for row in rows[1:]:
        differs = np.flatnonzero(found.rows.row(row)[0][:length] != first)
        length = int(differs[0]) if len(differs) else length
        first = first[:length]
    return length


def _margin(found: Comparisons, group: int) -> float | None:
    margin = float(found.margins[group])
    return None if np.isnan(margin) else margin


def _rating(found: Comparisons, group: int) -> str | None:
    rating = int(found.ratings[group])
    return RATINGS[rating] if rating >= 0 else None


def _desirable(found: Comparisons, group: int) -> bool | None:
    desirable = int(found.desirable[group])
    return bool(desirable) if desirable >= 0 else None
