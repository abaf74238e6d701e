"""What is left out, cut or refused: the stage's policies on rows that are too long or have nothing to train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetune.data.encode import encode
from finetune.data.readers import Fault
from finetune.data.report import DataReport, Dropped
from finetune.data.sources import bad_rows
from finetune.data.store import TokenRows
from finetune.data.tokenizer import Tokenizer
from finetune.errors import DataError, InputError
from finetune.families.base import Family
from finetune.recipe.learning_stages import SftStage
from finetune.recipe.settings import ModelSettings
from finetune.shapes import Example, Origin, Text

DUPLICATE = "duplicate of an earlier row"
NOTHING_TRAINED = "no token to train on"
TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG = "prompt longer than max_length"
HELD_OUT_COPY = "equal to a held-out row"

_LEAST_SHARE = 0.01
"""Below this share of trained tokens the mask is more likely wrong than the data is (users_pain: trl #4879)."""


def apply_policy(
    stage: SftStage, max_length: int, rows: TokenRows, fit: NDArray[np.bool_]
) -> tuple[TokenRows, list[str | None]]:
    """Rows as the stage's policy wants them, and why each is left out; those that are left out stay whole."""
    cut = rows.cut(max_length) if stage.too_long == "truncate" else rows
    reasons: list[str | None] = []
    for row in range(len(rows)):
        if rows.trained_counts[row] == 0:
            reasons.append(NOTHING_TRAINED)
        elif rows.lengths[row] <= max_length:
            reasons.append(None)
        elif stage.too_long == "truncate":
            reasons.append(None if fit[row] and cut.trained_counts[row] else PROMPT_TOO_LONG)
        else:
            reasons.append(TOO_LONG)
    is_used = np.array([reason is None for reason in reasons], dtype=np.bool_)
    return replace(
        cut,
        lengths=np.where(is_used, cut.lengths, rows.lengths),
        trained_counts=np.where(is_used, cut.trained_counts, rows.trained_counts),
    ), reasons


def answers_fit(
    stage: SftStage,
    model: ModelSettings,
    rows: TokenRows,
    examples: Sequence[Example],
    family: Family,
    tokenizer: Tokenizer,
) -> NDArray[np.bool_]:
    """Whether a token of an answer is left in a row that is cut. With loss_on: all the mask itself does not tell."""
    fit = np.ones(len(rows), dtype=np.bool_)
    if stage.too_long != "truncate" or stage.loss_on != "all":
        return fit
    long = np.flatnonzero(rows.lengths > model.max_length)
    for row, answer in zip(
        long, encode([examples[int(row)] for row in long], family, tokenizer, system=model.system), strict=True
    ):
        fit[row] = not isinstance(answer, InputError) and any(answer.trained[1 : model.max_length])
    return fit


def stop_on_long(
    rows: Sequence[tuple[Origin, np.int64, str | None]], max_length: int, places: Mapping[str, str], others: str
) -> None:
    """For `too_long: error`. rows: where each stands, its tokens, why it would be left out. others: the other policies.

    Raises DataError.
    """
    advice = f"too_long: error stops here, {others}"
    faults = [
        Fault(origin, f"has {length:,} tokens, more than model.max_length {max_length:,} ({advice})")
        for origin, length, why in rows
        if why == TOO_LONG
    ]
    if faults:
        raise bad_rows(faults, len(rows), places)


def refuse_empty(report: DataReport, max_length: int, ways_out: str) -> None:
    """Raises DataError where no row is left. ways_out: of rows that are too long, besides a larger max_length."""
    if report.train_rows:
        return

    def shown(reason: str, dropped: Dropped) -> str:
        return f"{dropped.rows:,} {reason} ({'; '.join(dropped.first[:2])})"

    why = ", ".join(shown(reason, dropped) for reason, dropped in report.dropped.items()) or "all held out"
    advice = ""
    if PROMPT_TOO_LONG in report.dropped:
        advice = f". Raise model.max_length (now {max_length:,}), or shorten the prompts, which are never cut"
    if TOO_LONG in report.dropped:
        advice = f". Raise model.max_length (now {max_length:,}), {ways_out}"
    raise DataError(f"no row is left to train on: of {report.rows:,} rows {why}{advice}")


def refuse_unusual_mask(stage: SftStage, family: Family, train: TokenRows, examples: Sequence[Example]) -> None:
    """In a chat format, hardly any or every token trained is nearly always a mistake in data or template."""
    if not family.is_chat or stage.allow_unusual_mask or stage.loss_on == "all":
        return
    chat = np.array([not isinstance(example, Text) for example in examples], dtype=np.bool_)
    if not chat.any():
        return
    trained = int(train.trained_counts[chat].sum())
    tokens = int(train.lengths[chat].sum()) - int(chat.sum())  # without first tokens, which are never trained
    if trained == tokens:
        what = "every token"
    elif trained < _LEAST_SHARE * tokens:
        what = f"only {trained:,} of {tokens:,} tokens ({trained / tokens:.2%})"
    else:
        return
    raise InputError(
        f"{what} of the {family.template} conversations would be trained, which is rarely meant: look at the rows with "
        "`finetune inspect`. Set allow_unusual_mask: true on the stage to train all the same"
    )
