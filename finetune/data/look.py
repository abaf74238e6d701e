"""A stage's rows to look at: made by the very functions that training calls, only that nothing is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from finetune.data.comparisons import Comparisons
from finetune.data.prepare import PreparedSft, prepare_sft
from finetune.data.prepare_preference import PreparedComparisons, prepare_comparisons
from finetune.data.prepare_prompts import PreparedPrompts, prepare_prompts
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.detect import resolve
from finetune.plan.base_files import locate_base
from finetune.recipe.learning_stages import DpoStage, PreferenceStage, RewardStage, SftStage
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.sampling_stages import ScoredStage
from finetune.recipe.schema import Stage
from finetune.shapes import RATINGS

Prepared = PreparedSft | PreparedComparisons | PreparedPrompts


@dataclass(frozen=True)
class Part:
    """Tokens of a row that stand together: the whole row, a prompt that answers share, or one answer. name: of it."""

    name: str
    ids: Sequence[int]
    trained: Sequence[int]


@dataclass(frozen=True)
class LookedAt:
    """One row. number: in its data, from 0. where: file and line. left_out: why, None = used. about: its margin or
    rating, where it has one. tokens, trained: of all its answers together."""

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
    family, locate = resolved.family, loaded.locate
    if isinstance(stage, SftStage):
        return prepare_sft(
            stage,
            model=model,
            seed=seed,
            locate=locate,
            stage_outputs=stage_outputs,
            family=family,
            tokenizer=tokenizer,
            cache=cache,
            say=say,
            refuse=False,
        ), tokenizer
    if isinstance(stage, PreferenceStage):
        return prepare_comparisons(
            stage,
            slices=stage.slices if isinstance(stage, RewardStage) else (),
            judged=isinstance(stage, DpoStage) and stage.loss == "kto",
            model=model,
            seed=seed,
            locate=locate,
            stage_outputs=stage_outputs,
            family=family,
            tokenizer=tokenizer,
            cache=cache,
            say=say,
            refuse=False,
        ), tokenizer
    assert isinstance(stage, ScoredStage)  # choose_stage lets no other through
    return prepare_prompts(
        stage.prompts,
        getattr(stage, "held_out", None),
        max_new_tokens=stage.max_new_tokens,
        model=model,
        seed=seed,
        locate=locate,
        stage_outputs=stage_outputs,
        family=family,
        tokenizer=tokenizer,
        say=say,
    ), tokenizer


def look_at(prepared: Prepared, count: int) -> list[LookedAt]:
    """The first `count` rows that are used; where none is, the first that are left out."""
    if isinstance(prepared, PreparedPrompts):
        return [
            LookedAt(
                index, str(prompt.origin), (Part("prompt", prompt.ids.tolist(), [0] * len(prompt.ids)),), None, "",
                len(prompt.ids), 0,
            )
            for index, prompt in enumerate(prepared.train[:count])
        ]  # fmt: skip
    used = [row for row, why in enumerate(prepared.dropped) if why is None]
    rows = used[:count] if used else range(min(count, len(prepared.dropped)))
    if isinstance(prepared, PreparedSft):
        return [_example(prepared, row) for row in rows]
    return [_comparison(prepared, row) for row in rows]


def _example(prepared: PreparedSft, row: int) -> LookedAt:
    ids, trained = prepared.rows.row(row)
    number = int(prepared.rows.origin[row])
    part = Part("", ids.tolist(), trained.tolist())
    where = str(prepared.origins[number])
    return LookedAt(number, where, (part,), prepared.dropped[row], "", len(ids), int(trained.sum()))


def _comparison(prepared: PreparedComparisons, group: int) -> LookedAt:
    found = prepared.comparisons
    number = found.origin_of(group)
    answers = [found.rows.row(row) for row in found.group(group)]
    shared = shared_tokens(found, group)
    first_ids, first_trained = answers[0]
    parts = [Part("prompt", first_ids[:shared].tolist(), first_trained[:shared].tolist())]
    for place, (ids, trained) in enumerate(answers):
        if (good := int(found.desirable[group])) >= 0:
            name = "desirable" if good else "undesirable"
        else:
            name = ("chosen", "rejected")[place] if len(answers) == 2 else f"{place + 1} of {len(answers)}"
        parts.append(Part(name, ids[shared:].tolist(), trained[shared:].tolist()))
    margin, rating = float(found.margins[group]), int(found.ratings[group])
    about = [] if np.isnan(margin) else [f"margin {margin:g}"]
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


def shared_tokens(found: Comparisons, group: int) -> int:
    """Leading tokens that all answers of a group have in common, none of them an answer's."""
    rows = found.group(group)
    length = int(found.prompt_lengths[list(rows)].min())
    first = found.rows.row(rows[0])[0][:length]
    for row in rows[1:]:
        differs = np.flatnonzero(found.rows.row(row)[0][:length] != first)
        length = int(differs[0]) if len(differs) else length
        first = first[:length]
    return length


def spoken(part: Part, tokenizer: Tokenizer) -> Iterator[tuple[str, bool, bool]]:
    """(text, trained, a special token) of tokens in a row that are alike; special tokens stand alone, by their names.

    Control characters are shown by their codes.
    """
    special = set(tokenizer.special_tokens.values())
    ids, trained = part.ids, part.trained
    edges = [
        at
        for at in range(1, len(ids))
        if trained[at] != trained[at - 1] or ids[at] in special or ids[at - 1] in special
    ]
    for begin, end in pairwise([0, *edges, len(ids)] if ids else []):
        is_special = ids[begin] in special
        text = tokenizer.token_text(ids[begin]) if is_special else _text(ids[begin:end], tokenizer)
        yield _visible(text), bool(trained[begin]), is_special


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    text = tokenizer.decode(ids)
    # SentencePiece drops the space before the first word of what it decodes.
    lost = tokenizer.token_text(ids[0]).startswith(" ") and not text.startswith(" ")
    return f" {text}" if lost else text


def _visible(text: str) -> str:
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in text)
