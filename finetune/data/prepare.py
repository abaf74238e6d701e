"""From a stage's data sources to the rows it trains on and the rows it is measured on, with a report of every row.

Read → take → tokenise → leave out (duplicates, nothing to train on, too long) → hold out → check the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.gather import Taken, gather, same_tokens, tokens_of
from finetune.data.mix import Mix, first_copies, held_out_mask, take_rows
from finetune.data.policy import (
    DUPLICATE,
    HELD_OUT_COPY,
    answers_fit,
    apply_policy,
    refuse_empty,
    refuse_unusual_mask,
    stop_on_long,
)
from finetune.data.report import DataReport, Dropped, dropped_by_reason, length_histogram
from finetune.data.sources import LISTED_ROWS, READ_EXAMPLES
from finetune.data.store import TokenRows
from finetune.data.tokenizer import Tokenizer
from finetune.families.base import Family
from finetune.recipe.learning_stages import SftStage
from finetune.recipe.settings import ModelSettings
from finetune.shapes import Origin, Row


@dataclass(frozen=True)
class PreparedSft:
    """train, held_out (None = no such rows): what is trained and measured on.

    rows: all rows that were taken, in the order of the files, as used; a row that is left out is whole. dropped: the
    reason for each of them, None = used. origins: where a row stands, by the number that `origin` arrays hold.
    """

    train: TokenRows
    held_out: TokenRows | None
    report: DataReport
    rows: TokenRows
    dropped: Sequence[str | None]
    origins: Sequence[Origin]
    mix: Mix

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """Indices into `train` for one epoch (from 0): shuffled by the seed, with weights applied."""
        return self.mix.order(epoch)

    def origin_of(self, train_row: int) -> Origin:
        return self.origins[self.train.origin[train_row]]


def prepare_sft(
    stage: SftStage,
    *,
    model: ModelSettings,
    seed: int,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    family: Family,
    tokenizer: Tokenizer,
    cache: Path | None,
    say: Callable[[str], None],
    refuse: bool = True,
) -> PreparedSft:
    """All of a stage's data, ready to train on.

    locate: makes a path of the recipe absolute. stage_outputs: where the rows of earlier stages lie, by stage.
    cache: folder of tokenised data, None = none. say: gets a line for the user. refuse: stop on what must not be
    trained on (no row left, an unusual mask, `too_long: error`); `finetune inspect` shows it instead.
    Raises DataError and InputError.
    """
    taken, apart, origins = gather(
        READ_EXAMPLES, stage.data, stage.held_out, seed=seed, locate=locate, stage_outputs=stage_outputs, say=say
    )
    examples = {key: row.example for part in (taken, apart) for key, row in zip(part.keys, part.rows, strict=True)}
    whole, index_of = tokens_of(
        dict(sorted(examples.items())),
        [(key, row.origin) for part in (taken, apart) for key, row in zip(part.keys, part.rows, strict=True)],
        {**apart.places, **taken.places},
        family,
        tokenizer,
        loss_on=stage.loss_on,
        system=model.system,
        cache=cache,
        say=say,
    )
    whole_rows = whole.select(np.array([index_of[key] for key in taken.keys], dtype=np.int64), taken.numbers)
    whole_apart = whole.select(np.array([index_of[key] for key in apart.keys], dtype=np.int64), apart.numbers)

    def fits(rows: TokenRows, examples: Sequence[Row]) -> tuple[TokenRows, list[str | None]]:
        answers = answers_fit(stage, model, rows, [row.example for row in examples], family, tokenizer)
        return apply_policy(stage, model.max_length, rows, answers)

    rows, dropped = fits(whole_rows, taken.rows)
    first = first_copies(taken.keys)
    if stage.duplicates == "drop":
        dropped = [why or (None if first[row] else DUPLICATE) for row, why in enumerate(dropped)]
    apart_rows, apart_dropped = fits(whole_apart, apart.rows)
    if stage.too_long == "error" and refuse:
        for part, lengths, why in ((taken, rows.lengths, dropped), (apart, apart_rows.lengths, apart_dropped)):
            found = [*zip([row.origin for row in part.rows], lengths, why, strict=True)]
            stop_on_long(found, model.max_length, part.places, "drop and truncate go on")

    held_out, on_train, copies = _hold_out(stage, seed, taken, rows, dropped, apart, apart_rows, apart_dropped)
    dropped = [why or (HELD_OUT_COPY if copies[row] else None) for row, why in enumerate(dropped)]
    used = np.array([why is None for why in dropped], dtype=np.bool_)
    trained_on = used & on_train
    train = rows.select(trained_on)
    mix = taken.mix(trained_on, seed)
    measured = np.isin(apart.numbers, held_out.origin)
    report = DataReport(
        sources=taken.source_reports(used),
        held_out_sources=apart.source_reports(measured),
        rows=len(rows),
        duplicates=int(len(first) - first.sum()),
        dropped=_dropped(taken, rows, dropped) | _dropped(apart, apart_rows, apart_dropped, "held-out rows "),
        truncated=int(np.count_nonzero(used & (rows.lengths < whole_rows.lengths))),
        train_rows=len(train),
        held_out_rows=len(held_out),
        epoch_rows=sum(mix.counts()),
        tokens=int(train.lengths.sum()),
        trained_tokens=int(train.trained_counts.sum()),
        lengths=length_histogram(train.lengths),
    )
    for line in report.lines():
        say(line)
    if refuse:
        refuse_empty(report, model.max_length, "use too_long: truncate, or split the long rows")
        refuse_unusual_mask(stage, family, train, [taken.rows[row].example for row in np.flatnonzero(trained_on)])
    return PreparedSft(train, held_out if len(held_out) else None, report, rows, dropped, origins, mix)


def _hold_out(
    stage: SftStage,
    seed: int,
    taken: Taken[Row],
    rows: TokenRows,
    dropped: Sequence[str | None],
    apart: Taken[Row],
    apart_rows: TokenRows,
    apart_dropped: Sequence[str | None],
) -> tuple[TokenRows, NDArray[np.bool_], NDArray[np.bool_]]:
    """The held-out rows; which of the taken rows are on the training side; and which equal a held-out row."""
    settings = stage.held_out
    if settings.data:
        usable = np.flatnonzero([why is None for why in apart_dropped]).astype(np.int64)
        held_out = apart_rows.select(usable[take_rows(len(usable), settings.max_rows, seed, "held out")])
        apart_keys = set(apart.keys)
        copies = np.array([key in apart_keys for key in taken.keys], dtype=np.bool_)
        return held_out, ~copies, copies | same_tokens(rows, held_out)
    usable = np.flatnonzero([why is None for why in dropped]).astype(np.int64)
    held = np.zeros(len(rows), dtype=np.bool_)
    held[usable] = held_out_mask([taken.keys[row] for row in usable], settings.fraction, settings.max_rows, seed)
    held_out = rows.select(held)
    return held_out, ~held, ~held & same_tokens(rows, held_out)


def _dropped(taken: Taken[Row], rows: TokenRows, dropped: Sequence[str | None], kind: str = "") -> dict[str, Dropped]:
    """By reason; a row is called by where it stands and how long it is."""
    names = [f"{row.origin}: {length:,} tokens" for row, length in zip(taken.rows, rows.lengths, strict=True)]
    return {kind + why: lost for why, lost in dropped_by_reason(dropped, names, LISTED_ROWS).items()}
