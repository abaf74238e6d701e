"""The rows that released weights are proven on: fixed ones, the run's own, and the user's held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.encode import encode, encode_prompt
from finetune.data.gather import gather
from finetune.data.sources import READ_EXAMPLES
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.recipe.data_settings import DataSource, HeldOut
from finetune.shapes import Dialog, Message, Text

MAX_TOKENS = 128
"""Each row is cut to this: with 24 rows and 128,000 words the log-probabilities of a proof come to 1.6 GiB."""
MAX_USER_ROWS = 16

FIXED = (
    "What is the capital of France, and what is it known for?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Übersetze ins Englische: Der alte Leuchtturm steht noch immer am Meer.",
)
FIXED_TEXT = "Once upon a time there was a little llama that lived on a hill. One day it walked down to the river and"


def fixed_rows(
    manifests: Sequence[Mapping[str, Any]], family: Family, tokenizer: Tokenizer, words: int
) -> list[list[int]]:
    """Token ids: questions in the run's template, a plain text, and the last proof row of every run.

    words: of the base; what a small tokenizer could write beyond them is left out.
    """
    rows = [
        encode_prompt(Dialog((Message("user", text),)) if family.is_chat else Text(text), family, tokenizer)
        for text in FIXED
    ]
    rows.append(encode_prompt(Text(FIXED_TEXT), family, tokenizer))
    rows += [ids for manifest in manifests if (ids := (manifest.get("proof") or {}).get("last_row_ids"))]
    return [list(row[:MAX_TOKENS]) for row in rows if row and max(row) < words]


def user_rows(
    path: Path,
    family: Family,
    tokenizer: Tokenizer,
    system: str | None,
    say: Callable[[str], None],
    *,
    most: int = MAX_USER_ROWS,
    tokens: int = MAX_TOKENS,
) -> list[list[int]]:
    """The first rows of the user's file, prompt and answer, in the run's template. Raises DataError, InputError."""
    taken, _, _ = gather(
        READ_EXAMPLES,
        [DataSource(path=str(path))],
        HeldOut(fraction=0.0),
        seed=0,
        locate=Path,
        stage_outputs={},
        say=say,
    )
    chosen = taken.rows[:most]
    if not chosen:
        raise InputError(f"--prompts: {path} has no row")
    found = encode([row.example for row in chosen], family, tokenizer, system=system)
    for row, encoded in zip(chosen, found, strict=True):
        if isinstance(encoded, InputError):
            raise InputError(f"{row.origin}: {encoded}") from encoded
    if len(taken.rows) > len(chosen):
        say(f"of {path} the first {len(chosen)} rows are taken, each up to {tokens} tokens")
    return [encoded.input_ids[:tokens] for encoded in found if not isinstance(encoded, InputError)]
