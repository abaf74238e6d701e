"""Comparisons and their tokens, arranged in groups; what of them is left out; what makes two prompts the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.comparisons import Comparisons
from finetune.data.convert_comparisons import without_space
from finetune.data.policy import NOTHING_TRAINED, TOO_LONG
from finetune.data.sources import content_key
from finetune.data.store import TokenRows
from finetune.data.tokenizer import Tokenizer
from finetune.families.base import Family
from finetune.families.tools_as_text import with_context
from finetune.shapes import RATINGS, Comparison, ComparisonRow, Completion, Dialog, Example, Judged

SAME_TEXT = "the answers differ at most by white space"
SAME_TOKENS = "the answers are the same tokens"
_PRECEDENCE = (SAME_TEXT, SAME_TOKENS, NOTHING_TRAINED, TOO_LONG)
"""Of several reasons, the one that a group is listed under: what no setting can mend first."""


def whole_answers(comparison: Comparison, family: Family) -> list[tuple[bytes, Example]]:
    """Each answer behind its prompt as one example, of which the answer alone is trained; with its content key.

    A family without turns gets one question and one answer as raw text, prompt and completion.
    """
    asked = tuple(replace(m, trained=False) if m.role == "assistant" else m for m in comparison.prompt.messages)
    answers = (comparison.answer,) if isinstance(comparison, Judged) else comparison.answers
    found: list[tuple[bytes, Example]] = []
    for answer in answers:
        dialog = Dialog((*asked, *answer), comparison.prompt.tools)
        example = dialog if family.is_chat else _as_completion(dialog)
        found.append((content_key(example), example))
    return found


def _as_completion(dialog: Dialog) -> Dialog | Completion:
    if [m.role for m in dialog.messages] != ["user", "assistant"] or dialog.tools or dialog.messages[1].tool_calls:
        return dialog  # the family says what is wrong with it
    question, answer = dialog.messages
    return Completion(with_context(question), answer.content)


def group_answers(
    rows: Sequence[ComparisonRow],
    where: Sequence[Sequence[int]],
    numbers: NDArray[np.int64],
    tokens: TokenRows,
    tokenizer: Tokenizer,
    slices: Sequence[str],
) -> Comparisons:
    """rows: the comparisons. where: for each, its answers' places in `tokens`. numbers: int64 [G], their origins."""
    sizes = np.array([len(group) for group in where], dtype=np.int64)
    index = np.array([place for group in where for place in group], dtype=np.int64)
    trained = np.flatnonzero(tokens.trained)
    first = np.append(trained, len(tokens.ids))[np.searchsorted(trained, tokens.starts)]
    prompt_lengths = np.minimum(first - tokens.starts, tokens.lengths)
    return Comparisons(
        tokens.select(index, np.repeat(numbers, sizes)),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        prompt_lengths[index],
        np.array([_margin(row.comparison) for row in rows], dtype=np.float64),
        np.array([_rating(row.comparison) for row in rows], dtype=np.int8),
        np.array([_desirable(row.comparison) for row in rows], dtype=np.int8),
        _formatted(tokens.ids, tokenizer),
        {name: np.array([_text_of(row.extra.get(name)) for row in rows], dtype=np.str_) for name in slices},
    )


def answer_reasons(found: Comparisons, comparisons: Sequence[Comparison], max_length: int) -> list[str | None]:
    """Why each answer is left out, None = it is not. Of answers that are alike the best one stays."""
    reasons: list[str | None] = []
    for group, comparison in enumerate(comparisons):
        texts: set[str] = set()
        ids: set[bytes] = set()
        answers = () if isinstance(comparison, Judged) else comparison.answers
        squeezed = [without_space(answer) for answer in answers] if len(answers) > 1 else [""]
        for row, text in zip(found.group(group), squeezed, strict=True):
            content = found.rows.row(row)[0].tobytes()
            if text in texts:
                reasons.append(SAME_TEXT)
            elif content in ids:
                reasons.append(SAME_TOKENS)
            elif found.rows.trained_counts[row] == 0:
                reasons.append(NOTHING_TRAINED)
            else:
                reasons.append(TOO_LONG if found.rows.lengths[row] > max_length else None)
            texts.add(text)
            ids.add(content)
    return reasons


def group_reasons(found: Comparisons, lost: Sequence[str | None]) -> list[str | None]:
    """Why each group is left out: a ranking of which fewer than two answers remain, a judged answer that is lost."""
    reasons: list[str | None] = []
    for group, desirable in enumerate(found.desirable):
        whys = [lost[row] for row in found.group(group)]
        enough = whys.count(None) >= (2 if desirable < 0 else 1)
        reasons.append(None if enough else min((why for why in whys if why), key=_PRECEDENCE.index))
    return reasons


def prompt_key(prompt: Dialog) -> bytes:
    """sha256 of what is asked, white space around each turn aside: equal for comparisons that share a prompt."""
    turns = [
        [m.role, with_context(m).strip(), [[call.name, call.arguments] for call in m.tool_calls]]
        for m in prompt.messages
    ]
    return hashlib.sha256(json.dumps([turns, list(prompt.tools)], default=str).encode()).digest()


def same_prompt(found: Comparisons, held_out: Comparisons) -> NDArray[np.bool_]:
    """bool [G]: groups whose prompt has the tokens of a held-out prompt, though the rows say it otherwise."""
    held = {_prompt_tokens(held_out, row) for row in range(len(held_out.rows))}
    return np.array(
        [any(_prompt_tokens(found, row) in held for row in found.group(group)) for group in range(len(found))],
        dtype=np.bool_,
    )


def _prompt_tokens(found: Comparisons, row: int) -> bytes:
    return found.rows.row(row)[0][: found.prompt_lengths[row]].tobytes()


def _formatted(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.uint8]:
    # Special tokens enter by name only, so their ids are the template's; but <unk> stands for a character.
    marks = [index for name, index in tokenizer.special_tokens.items() if name != "<unk>"]
    table = np.zeros(max([tokenizer.vocab_size, *marks, int(ids.max(initial=0))]) + 1, dtype=np.uint8)
    table[marks] = 1
    return table[ids]


def _margin(comparison: Comparison) -> float:
    return np.nan if isinstance(comparison, Judged) or comparison.margin is None else comparison.margin


def _rating(comparison: Comparison) -> int:
    return -1 if isinstance(comparison, Judged) or comparison.rating is None else RATINGS.index(comparison.rating)


def _desirable(comparison: Comparison) -> int:
    return int(comparison.desirable) if isinstance(comparison, Judged) else -1


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
