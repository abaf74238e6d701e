"""From a stage's data sources to the comparisons it trains on and those it is measured on, with a report of every row.

Read → take → tokenise → leave out (nothing to compare, too long, duplicates) → hold out by prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.data.comparisons import Comparisons
from finetune.data.gather import Taken, gather, tokens_of
from finetune.data.group import answer_reasons, group_answers, group_reasons, prompt_key, same_prompt, whole_answers
from finetune.data.mix import Mix, first_copies, held_out_mask, take_rows
from finetune.data.policy import DUPLICATE, TOO_LONG, refuse_empty, stop_on_long
from finetune.data.report import DataReport, Dropped, dropped_by_reason, length_histogram
from finetune.data.sources import LISTED_ROWS, READ_JUDGED, READ_RANKINGS
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.recipe.learning_stages import PreferenceStage
from finetune.recipe.settings import ModelSettings
from finetune.recipe.words import did_you_mean
from finetune.shapes import ComparisonRow, Origin

__all__ = ["Comparisons", "PreparedComparisons", "prepare_comparisons"]

HELD_OUT_PROMPT = "its prompt is held out"


@dataclass(frozen=True)
class PreparedComparisons:
    """train, held_out (None = no such comparisons): what is trained and measured on.

    comparisons: all that were taken, in the order of the files; those that are used without the answers that are left
    out, the others whole. dropped: the reason for each that is left out, None = used. origins: where a comparison
    stands, by the number that `origin_of` of Comparisons gives.
    """

    train: Comparisons
    held_out: Comparisons | None
    report: DataReport
    comparisons: Comparisons
    dropped: Sequence[str | None]
    origins: Sequence[Origin]
    mix: Mix

    def epoch_order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of groups of `train` for one epoch (from 0): shuffled by the seed, with weights applied."""
        return self.mix.order(epoch)

    def origin_of(self, train_group: int) -> Origin:
        return self.origins[self.train.origin_of(train_group)]


@dataclass(frozen=True)
class _Part:
    """Comparisons of one side's files. found: whole. reasons: of each group, None = used. lost: of each answer."""

    taken: Taken[ComparisonRow]
    found: Comparisons
    reasons: Sequence[str | None]
    lost: Sequence[str | None]

    @property
    def used(self) -> NDArray[np.bool_]:
        return np.array([why is None for why in self.reasons], dtype=np.bool_)

    def without(self, groups: NDArray[np.bool_], reason: str) -> _Part:
        """With a reason for some groups, where they have none yet."""
        reasons = [why or (reason if out else None) for why, out in zip(self.reasons, groups, strict=True)]
        return replace(self, reasons=reasons)

    def long(self) -> list[tuple[Origin, np.int64, str | None]]:
        """Every comparison that has a too long answer, with the length of its longest."""
        groups = [(row, self.found.group(group)) for group, row in enumerate(self.taken.rows)]
        return [
            (row.origin, max(self.found.rows.lengths[a] for a in answers), TOO_LONG)
            if any(self.lost[a] == TOO_LONG for a in answers)
            else (row.origin, np.int64(0), None)
            for row, answers in groups
        ]

    def trimmed(self) -> Comparisons:
        """Groups that are used without the answers that are left out; the others whole."""
        kept = np.array([why is None for why in self.lost], dtype=np.bool_)
        return self.found.keep_rows(kept | np.repeat(~self.used, self.found.sizes))


def prepare_comparisons(
    stage: PreferenceStage,
    *,
    slices: Sequence[str],
    judged: bool,
    model: ModelSettings,
    seed: int,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    family: Family,
    tokenizer: Tokenizer,
    cache: Path | None,
    say: Callable[[str], None],
    refuse: bool = True,
) -> PreparedComparisons:
    """All of a stage's comparisons, ready to train on.

    slices: columns to keep as `extra`. judged: the stage learns from single judged answers (kto), not from rankings.
    locate, stage_outputs, cache, say, refuse: as for prepare_sft. Raises DataError and InputError.
    """
    reading = READ_JUDGED if judged else READ_RANKINGS
    taken, apart, origins = gather(
        reading, stage.data, stage.held_out, seed=seed, locate=locate, stage_outputs=stage_outputs, say=say
    )
    _check_slices(slices, [*taken.rows, *apart.rows])
    answers = [[whole_answers(row.comparison, family) for row in part.rows] for part in (taken, apart)]
    # Answers to one prompt stand together, so that a prompt's own texts are mostly tokenised once.
    examples = {
        (prompt_key(row.comparison.prompt), key): example
        for part, groups in zip((taken, apart), answers, strict=True)
        for row, group in zip(part.rows, groups, strict=True)
        for key, example in group
    }
    tokens, index_of = tokens_of(
        {key: examples[prompt, key] for prompt, key in sorted(examples)},
        [
            (key, row.origin)
            for part, groups in zip((taken, apart), answers, strict=True)
            for row, group in zip(part.rows, groups, strict=True)
            for key, _ in group
        ],
        {**apart.places, **taken.places},
        family,
        tokenizer,
        loss_on="answers",
        system=model.system,
        cache=cache,
        say=say,
    )

    def arranged(part: Taken[ComparisonRow], groups: Sequence[Sequence[tuple[bytes, object]]]) -> _Part:
        where = [[index_of[key] for key, _ in group] for group in groups]
        found = group_answers(part.rows, where, part.numbers, tokens, tokenizer, slices)
        lost = answer_reasons(found, [row.comparison for row in part.rows], model.max_length)
        return _Part(part, found, group_reasons(found, lost), lost)

    here, there = arranged(taken, answers[0]), arranged(apart, answers[1])
    first = first_copies(taken.keys)
    if stage.duplicates == "drop":
        here = here.without(~first, DUPLICATE)
    if stage.too_long == "error" and refuse:
        for part in (here, there):
            stop_on_long(part.long(), model.max_length, part.taken.places, "drop leaves such answers out")
    held_out, held, shares = _hold_out(stage, seed, here, there)
    here = here.without(shares, HELD_OUT_PROMPT)

    ready = here.trimmed()
    trained_on = here.used & ~held
    train = ready.select(trained_on)
    mix = taken.mix(trained_on, seed)
    report = _report(here, there, first, train, held_out, mix)
    for line in report.lines():
        say(line)
    if refuse:
        refuse_empty(report, model.max_length, "or leave out the long answers")
    measured = held_out if len(held_out) else None
    return PreparedComparisons(train, measured, report, ready, here.reasons, origins, mix)


def _hold_out(
    stage: PreferenceStage, seed: int, here: _Part, there: _Part
) -> tuple[Comparisons, NDArray[np.bool_], NDArray[np.bool_]]:
    """The held-out comparisons; which of the taken ones are among them; which others share a prompt with one."""
    settings = stage.held_out
    ready = here.trimmed()
    prompts = [prompt_key(row.comparison.prompt) for row in here.taken.rows]
    held = np.zeros(len(ready), dtype=np.bool_)
    if settings.data:
        usable = np.flatnonzero(there.used).astype(np.int64)
        held_out = there.trimmed().select(usable[take_rows(len(usable), settings.max_rows, seed, "held out")])
        apart = {prompt_key(row.comparison.prompt) for row in there.taken.rows}
        shares = np.array([key in apart for key in prompts], dtype=np.bool_)
        return held_out, held, shares | same_prompt(ready, held_out)
    usable = np.flatnonzero(here.used).astype(np.int64)
    held[usable] = held_out_mask([prompts[row] for row in usable], settings.fraction, settings.max_rows, seed)
    held_out = ready.select(held)
    return held_out, held, ~held & same_prompt(ready, held_out)


def _report(
    here: _Part, there: _Part, first: NDArray[np.bool_], train: Comparisons, held_out: Comparisons, mix: Mix
) -> DataReport:
    measured = np.isin(there.taken.numbers, held_out.rows.origin)
    lost = Counter(
        why
        for part in (here, there)
        for why, used in zip(part.lost, np.repeat(part.used, part.found.sizes), strict=True)
        if why is not None and used
    )
    skipped = sum(len(source.skipped) for source in here.taken.sources)
    return DataReport(
        sources=here.taken.source_reports(here.used),
        held_out_sources=there.taken.source_reports(measured),
        rows=len(here.found) + skipped,
        duplicates=int(len(first) - first.sum()),
        dropped=_dropped(here) | _dropped(there, "held-out rows "),
        truncated=0,
        train_rows=len(train),
        held_out_rows=len(held_out),
        epoch_rows=sum(mix.counts()),
        tokens=int(train.rows.lengths.sum()),
        trained_tokens=int(train.rows.trained_counts.sum()),
        lengths=length_histogram(train.rows.lengths),
        dropped_answers=dict(lost),
    )


def _dropped(part: _Part, kind: str = "") -> dict[str, Dropped]:
    """By reason; a comparison is called by where it stands and how long its answers are, each with the prompt."""
    names = []
    for group, row in enumerate(part.taken.rows):
        lengths = [f"{part.found.rows.lengths[answer]:,}" for answer in part.found.group(group)]
        names.append(f"{row.origin}: {' and '.join(lengths)} tokens")
    reasons = list(part.reasons)
    for source in part.taken.sources:
        reasons += [why for _, why in source.skipped]
        names += [str(origin) for origin, _ in source.skipped]
    return {kind + why: lost for why, lost in dropped_by_reason(reasons, names, LISTED_ROWS).items()}


def _check_slices(slices: Sequence[str], rows: Sequence[ComparisonRow]) -> None:
    there = dict.fromkeys(column for row in rows for column in row.extra)
    for column in slices:
        if rows and column not in there:
            hint = did_you_mean(column, list(there)) or f"there are {', '.join(list(there)[:12]) or 'none'}"
            raise InputError(f"slices: no row has a column '{column}' with text or numbers ({hint})")
