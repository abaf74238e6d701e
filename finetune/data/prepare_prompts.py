"""Prompts for stages that sample: read, rendered up to where the answer begins, tokenised, split from held-out ones.

Read → take → tokenise → leave out (duplicates, too long for an answer) → hold out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.encode import encode_prompt
from finetune.data.gather import Taken, gather
from finetune.data.mix import held_out_mask, take_rows
from finetune.data.policy import DUPLICATE, HELD_OUT_COPY
from finetune.data.readers import Fault
from finetune.data.report import Dropped, dropped_by_reason, length_histogram
from finetune.data.sources import LISTED_ROWS, READ_PROMPTS, bad_rows, content_key
from finetune.data.tokenizer import Tokenizer
from finetune.errors import DataError, InputError
from finetune.families.base import Family, RenderError
from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.recipe.settings import ModelSettings
from finetune.shapes import Completion, Dialog, Example, Origin, Row

NO_ROOM = "no room for max_new_tokens within model.max_length"


@dataclass(frozen=True)
class Prompt:
    """One prompt. ids: [P] int64, up to where the answer begins. example: what was rendered, without the answer.

    key: below 2**64, from the prompt's content alone: what its random draws are seeded with. columns: the row's other
    columns, for checkers and safety marks (the row's own last answer is `answer` where no column has that name).
    """

    ids: NDArray[np.int64]
    example: Example
    key: int
    origin: Origin
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedPrompts:
    """train and held_out share no prompt. report: JSON for the manifest (sources with digests, counts, dropped)."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]
    report: Mapping[str, Any]


def prepare_prompts(
    prompts: Sequence[DataSource],
    held_out: HeldOut | None,
    *,
    max_new_tokens: int,
    model: ModelSettings,
    seed: int,
    locate: Callable[[str], Path],
    stage_outputs: Mapping[str, Path],
    family: Family,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> PreparedPrompts:
    """All of a stage's prompts. Equal prompts count once (the first stays); those that with max_new_tokens more would
    exceed model.max_length are left out, counted and listed. Raises DataError and InputError (no prompt left)."""
    if weighted := [source for source in prompts if source.weight != 1.0]:
        raise InputError(
            f"prompts: weight {weighted[0].weight:g} has no meaning there, a prompt is in the set once; take draws "
            "some of a source's rows"
        )
    settings = held_out or HeldOut(fraction=0.0)
    taken, apart, _ = gather(
        READ_PROMPTS, prompts, settings, seed=seed, locate=locate, stage_outputs=stage_outputs, say=say
    )
    room = model.max_length - max_new_tokens
    places = {**apart.places, **taken.places}
    found = _tokenised(taken.rows, family, tokenizer, model.system, places)
    found_apart = _tokenised(apart.rows, family, tokenizer, model.system, places)
    dropped = _left_out(found, room)
    dropped_apart = _left_out(found_apart, room)

    usable = np.flatnonzero([why is None for why in dropped]).astype(np.int64)
    if settings.data:
        usable_apart = np.flatnonzero([why is None for why in dropped_apart]).astype(np.int64)
        chosen = usable_apart[take_rows(len(usable_apart), settings.max_rows, seed, "held out")]
        measured = [found_apart[index] for index in chosen]
        known = {content for prompt in found_apart for content in _contents(prompt)}
        for index in usable:
            if any(content in known for content in _contents(found[index])):
                dropped[index] = HELD_OUT_COPY
        held = np.zeros(len(found), dtype=np.bool_)
    else:
        keys = [found[index].key.to_bytes(8) for index in usable]
        held = np.zeros(len(found), dtype=np.bool_)
        held[usable] = held_out_mask(keys, settings.fraction, settings.max_rows, seed)
        measured = [found[index] for index in np.flatnonzero(held)]
        chosen = np.zeros(0, dtype=np.int64)
    used = np.array([why is None for why in dropped], dtype=np.bool_)
    train = [found[index] for index in np.flatnonzero(used & ~held)]

    is_measured = np.isin(np.arange(len(found_apart)), chosen)
    duplicates = sum(why == DUPLICATE for why in dropped)
    lost_by = _dropped(taken, found, dropped) | _dropped(apart, found_apart, dropped_apart, "held-out prompts: ")
    report = {
        "sources": [asdict(source) for source in taken.source_reports(used)],
        "held_out_sources": [asdict(source) for source in apart.source_reports(is_measured)],
        "rows": len(found),
        "duplicates": duplicates,
        "dropped": {why: asdict(lost) for why, lost in lost_by.items()},
        "prompts": len(train),
        "held_out_prompts": len(measured),
        "tokens": sum(len(prompt.ids) for prompt in train),
        "lengths": asdict(length_histogram(np.array([len(prompt.ids) for prompt in train], dtype=np.int64))),
    }
    more = f", {duplicates:,} of them exact duplicates" if duplicates else ""
    say(f"prompts: {len(found):,} rows{more}; {len(train):,} prompts, {len(measured):,} held out")
    for why, lost in lost_by.items():
        if why != DUPLICATE:
            shown = "; ".join([*lost.first[:3], *(["…"] if lost.rows > 3 else [])])
            say(f"left out: {lost.rows:,} prompts, {why} ({shown})")
    if not train:
        raise DataError(_why_none(len(found), lost_by, model.max_length, max_new_tokens))
    return PreparedPrompts(train, measured, report)


def make_prompt(
    example: Dialog | Completion,
    origin: Origin,
    columns: Mapping[str, Any],
    family: Family,
    tokenizer: Tokenizer,
    system: str | None,
) -> Prompt:
    """Render and tokenise one prompt. system: the recipe's, for conversations that have none. Raises RenderError."""
    ids = np.array(encode_prompt(example, family, tokenizer, system), dtype=np.int64)
    return Prompt(ids, example, int.from_bytes(content_key(example)[:8]), origin, columns)


def _tokenised(
    rows: Sequence[Row], family: Family, tokenizer: Tokenizer, system: str | None, places: Mapping[str, str]
) -> list[Prompt]:
    """Raises DataError with the first rows that the family has no form for."""
    found: list[Prompt] = []
    faults: list[Fault] = []
    for row in rows:
        assert isinstance(row.example, (Dialog, Completion))  # what READ_PROMPTS makes
        try:
            found.append(make_prompt(row.example, row.origin, row.extra, family, tokenizer, system))
        except RenderError as error:
            faults.append(Fault(row.origin, str(error)))
    if faults:
        raise bad_rows(faults, len(rows), places)
    return found


def _contents(prompt: Prompt) -> tuple[int | bytes, bytes]:
    """What makes prompts equal: what they say, or their tokens (the same question in another format)."""
    return prompt.key, prompt.ids.tobytes()


def _left_out(prompts: Sequence[Prompt], room: int) -> list[str | None]:
    reasons: list[str | None] = []
    seen: set[int | bytes] = set()
    for prompt in prompts:
        if any(content in seen for content in _contents(prompt)):
            reasons.append(DUPLICATE)
        else:
            reasons.append(NO_ROOM if len(prompt.ids) > room else None)
        seen.update(_contents(prompt))
    return reasons


def _dropped(
    taken: Taken[Row], prompts: Sequence[Prompt], dropped: Sequence[str | None], kind: str = ""
) -> dict[str, Dropped]:
    names = [f"{row.origin}: {len(prompt.ids):,} tokens" for row, prompt in zip(taken.rows, prompts, strict=True)]
    return {kind + why: lost for why, lost in dropped_by_reason(dropped, names, LISTED_ROWS).items()}


def _why_none(rows: int, dropped: Mapping[str, Dropped], max_length: int, max_new_tokens: int) -> str:
    why = ", ".join(f"{lost.rows:,} {reason} ({'; '.join(lost.first[:2])})" for reason, lost in dropped.items())
    advice = ""
    if NO_ROOM in dropped:
        advice = (
            f". Raise model.max_length (now {max_length:,}) or lower max_new_tokens (now {max_new_tokens:,}): a prompt "
            "and its answer have to fit together"
        )
    return f"no prompt is left: of {rows:,} rows {why or 'all held out'}{advice}"
