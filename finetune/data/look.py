"""A stage's rows to look at: made by the very functions that training calls, only that nothing is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune.data.comparisons import Comparisons
from finetune.data.prepare import PreparedSft, prepare_sft
from finetune.data.prepare_preference import PreparedComparisons, prepare_comparisons
from finetune.data.prepare_prompts import PreparedPrompts, prepare_prompts
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.detect import resolve
from finetune.plan.base_files import locate_base
from finetune.plan.plan import make_plan, stages_read
from finetune.recipe.learning_stages import DpoStage, PreferenceStage, RewardStage, SftStage
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.references import row_sources
from finetune.recipe.sampling_stages import ScoredStage
from finetune.recipe.schema import Stage
from finetune.shapes import RATINGS

Prepared = PreparedSft | PreparedComparisons | PreparedPrompts

SHOWN_TOKENS = 1200
"""A longer part is shown with its middle left out: about three screens of a terminal."""


@dataclass(frozen=True)
class Part:
    """Tokens of a row that stand together: the whole row, a prompt that answers share, or one answer. name: of it.

    whole: tokens, with the prompt where the part is an answer.
    """

    name: str
    ids: Sequence[int]
    trained: Sequence[int]
    whole: int


class Piece(NamedTuple):
    """Text of tokens in a row that are alike. special: one special token. hidden: says how many are left out here."""

    text: str
    trained: bool
    special: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class LookedAt:
    """One row. number: in its data, from 0. where: file and line. left_out: why, None = used. about: how many answers
    it has, its margin and rating. tokens, trained: of all its answers together."""

    number: int
    where: str
    parts: Sequence[Part]
    left_out: str | None
    about: str
    tokens: int
    trained: int


def choose_stage(loaded: LoadedRecipe, name: str | None) -> tuple[str, Stage]:
    """The named stage, or the first that has data of its own. Raises InputError where it has none."""
    stages = loaded.recipe.stages
    with_data = {
        key: stage for key, stage in stages.items() if isinstance(stage, (SftStage, PreferenceStage, ScoredStage))
    }
    if name is None and with_data:
        return next(iter(with_data.items()))
    if name not in with_data:
        what = "no stage with data to look at" if name is None else f"no stage '{name}' with data"
        raise InputError(f"{loaded.source.name} has {what}; it has {', '.join(with_data) or 'none'}")
    return name, with_data[name]


def finished_inputs(loaded: LoadedRecipe, stage: Stage, runs: Path) -> dict[str, Path]:
    """Folders of the finished stages that a stage reads rows of; no plan is made where it reads none."""
    if not any(source.stage for _, source in row_sources(stage)):
        return {}
    plan = make_plan(loaded, runs)
    read = stages_read(stage, set(loaded.recipe.stages))
    return {name: plan.stage(name).folder for name in read if plan.stage(name).state == "done"}


def prepare_stage(
    loaded: LoadedRecipe,
    stage: Stage,
    *,
    stage_outputs: Mapping[str, Path],
    cache: Path | None,
    say: Callable[[str], None],
) -> tuple[Prepared, Tokenizer]:
    """All rows of a stage as tokens. stage_outputs: folders of finished stages, by name. cache: of tokenised data.

    Needs the base's config and tokenizer, not its weights. Raises InputError and its kinds.
    """
    model, seed = loaded.recipe.model, loaded.recipe.seed
    base = locate_base(model, loaded.folder, weights=False)
    tokenizer = Tokenizer.load(base.folder)
    resolved = resolve(
        base.config,
        tokenizer.special_tokens,
        model.template,
        base_name=base.name,
        base_chat_template=base.chat_template,
    )
    for line in resolved.said:
        say(line)
    alike: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "locate": loaded.locate,
        "stage_outputs": stage_outputs,
        "family": resolved.family,
        "tokenizer": tokenizer,
        "say": say,
    }
    if isinstance(stage, SftStage):
        return prepare_sft(stage, **alike, cache=cache, refuse=False), tokenizer
    if isinstance(stage, PreferenceStage):
        judged = isinstance(stage, DpoStage) and stage.loss == "kto"
        slices = stage.slices if isinstance(stage, RewardStage) else ()
        return prepare_comparisons(stage, **alike, slices=slices, judged=judged, cache=cache, refuse=False), tokenizer
    assert isinstance(stage, ScoredStage)  # choose_stage lets no other through
    held_out = getattr(stage, "held_out", None)
    return prepare_prompts(stage.prompts, held_out, **alike, max_new_tokens=stage.max_new_tokens), tokenizer


def count_rows(prepared: Prepared) -> int:
    """Rows that can be looked at: of prompts those that are used, else those that are left out too."""
    return len(prepared.train) if isinstance(prepared, PreparedPrompts) else len(prepared.dropped)


def rows_to_show(prepared: Prepared, count: int) -> Sequence[int]:
    """The first `count` rows that are used; where none is, the first that are left out."""
    if isinstance(prepared, PreparedPrompts):
        return range(min(count, len(prepared.train)))
    used = [row for row, why in enumerate(prepared.dropped) if why is None]
    return used[:count] if used else range(min(count, len(prepared.dropped)))


def look_at(prepared: Prepared, row: int) -> LookedAt:
    """One row, by its place among them: below `count_rows`."""
    if isinstance(prepared, PreparedPrompts):
        return _prompt(prepared, row)
    return _example(prepared, row) if isinstance(prepared, PreparedSft) else _comparison(prepared, row)


def _prompt(prepared: PreparedPrompts, row: int) -> LookedAt:
    prompt = prepared.train[row]
    count = len(prompt.ids)
    part = Part("prompt", prompt.ids.tolist(), [0] * count, count)
    return LookedAt(row, str(prompt.origin), (part,), None, "", count, 0)


def _example(prepared: PreparedSft, row: int) -> LookedAt:
    ids, trained = prepared.rows.row(row)
    number = int(prepared.rows.origin[row])
    part = Part("", ids.tolist(), trained.tolist(), len(ids))
    where = str(prepared.origins[number])
    return LookedAt(number, where, (part,), prepared.dropped[row], "", len(ids), int(trained.sum()))


def _comparison(prepared: PreparedComparisons, group: int) -> LookedAt:
    found = prepared.comparisons
    number = found.origin_of(group)
    answers = [found.rows.row(row) for row in found.group(group)]
    shared = _shared_tokens(found, group)
    first_ids, first_trained = answers[0]
    parts = [Part("prompt", first_ids[:shared].tolist(), first_trained[:shared].tolist(), shared)]
    for place, (ids, trained) in enumerate(answers):
        if (good := int(found.desirable[group])) >= 0:
            name = "desirable" if good else "undesirable"
        else:
            name = ("chosen", "rejected")[place] if len(answers) == 2 else f"{place + 1} of {len(answers)}"
        parts.append(Part(name, ids[shared:].tolist(), trained[shared:].tolist(), len(ids)))
    margin, rating = float(found.margins[group]), int(found.ratings[group])
    about = [f"{len(answers)} answer{'s' if len(answers) > 1 else ''}"]
    about += [] if np.isnan(margin) else [f"margin {margin:g}"]
    about += [f"rating {RATINGS[rating].replace('_', ' ')}"] if rating >= 0 else []
    return LookedAt(
        number,
        str(prepared.origins[number]),
        parts,
        prepared.dropped[group],
        ", ".join(about),
        sum(len(ids) for ids, _ in answers),
        sum(int(trained.sum()) for _, trained in answers),
    )


def _shared_tokens(found: Comparisons, group: int) -> int:
    """Leading tokens that all answers of a group have in common, none of them an answer's."""
    rows = found.group(group)
    length = int(found.prompt_lengths[list(rows)].min())
    first = found.rows.row(rows[0])[0][:length]
    for row in rows[1:]:
        differs = np.flatnonzero(found.rows.row(row)[0][:length] != first)
        length = int(differs[0]) if len(differs) else length
        first = first[:length]
    return length


def lengths_of(prepared: Prepared) -> list[tuple[int, int, int]]:
    """(from, to, how many): tokens of what is trained on, or of prompts, without empty bins at either end."""
    if isinstance(prepared, PreparedPrompts):
        edges, counts = prepared.report["lengths"]["edges"], prepared.report["lengths"]["counts"]
    else:
        edges, counts = prepared.report.lengths.edges, prepared.report.lengths.counts
    bins = [(max(low, 1), high - 1, count) for (low, high), count in zip(pairwise(edges), counts, strict=True)]
    filled = [place for place, (_, _, count) in enumerate(bins) if count]
    return bins[filled[0] : filled[-1] + 1] if filled else []


def spoken(part: Part, tokenizer: Tokenizer) -> Iterator[Piece]:
    """A part as text; special tokens stand alone, by their names, control characters by their codes."""
    special = set(tokenizer.special_tokens.values())
    ids, trained = part.ids, part.trained
    hidden = range(0)
    if len(ids) > SHOWN_TOKENS:
        hidden = range(SHOWN_TOKENS // 2, len(ids) - SHOWN_TOKENS // 2)
    edges = [0]
    for at in range(1, len(ids)):
        at_gap = len(hidden) > 0 and at in (hidden.start, hidden.stop)
        changes = trained[at] != trained[at - 1] or ids[at] in special or ids[at - 1] in special
        if at_gap or (changes and at not in hidden):
            edges.append(at)
    for begin, end in pairwise([*edges, len(ids)] if ids else []):
        if begin in hidden:
            yield Piece(f" … {end - begin:,} tokens … ", False, hidden=True)
            continue
        is_special = ids[begin] in special
        text = tokenizer.token_text(ids[begin]) if is_special else _text(ids[begin:end], tokenizer)
        yield Piece(_visible(text), bool(trained[begin]), is_special)


def bracketed(pieces: Sequence[Piece]) -> str:
    """Pieces as plain text, what is trained in ⟦…⟧."""
    shown, is_open = "", False
    for piece in pieces:
        shown += ("⟦" if piece.trained and not is_open else "") + ("⟧" if is_open and not piece.trained else "")
        shown, is_open = shown + piece.text, piece.trained
    return shown + ("⟧" if is_open else "")


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(ids)
    # SentencePiece drops the space before the first word of what it decodes.
    lost = tokenizer.token_text(ids[0]).startswith(" ") and not text.startswith(" ")
    return f" {text}" if lost else text


def _visible(text: str) -> str:
    """Control characters by their codes: data must not steer a terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in text)
