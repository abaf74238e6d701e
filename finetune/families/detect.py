"""Which family a base belongs to, from its config and tokenizer; every conclusion is said aloud with its witness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.families.base import Family


@dataclass(frozen=True)
class Resolved:
    """family: the template on the base's generation. said: lines to print, what was concluded and from what."""

    family: Family
    generation: str
    pad_token: str
    said: tuple[str, ...]


def resolve(
    config: Mapping[str, Any],
    special_tokens: Mapping[str, int],
    template: str = "auto",
    *,
    base_name: str = "",
    base_chat_template: str | None = None,
) -> Resolved:
    raise NotImplementedError
