"""From examples to token ids and a mask, by the family's own rendering: never by the tokenizer's template tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.shapes import Dialog, Example


@dataclass(frozen=True)
class Encoded:
    """One example. input_ids: token ids, bos included. trained: 0 or 1 a token, of the same length."""

    input_ids: list[int]
    trained: list[int]


def encode(
    examples: Sequence[Example],
    family: Family,
    tokenizer: Tokenizer,
    *,
    loss_on: str = "answers",
    system: str | None = None,
) -> list[Encoded | InputError]:
    raise NotImplementedError


def encode_prompt(dialog: Dialog, family: Family, tokenizer: Tokenizer, system: str | None = None) -> list[int]:
    raise NotImplementedError
