"""The base's tokenizer, read with the light `tokenizers` library: 0.1 s to import, where transformers takes seconds.

Text is always tokenised as text: a literal `<|eot_id|>` or `</s>` in it gives the ids of its characters, never the
special token. Special tokens enter only by name, through `id_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.errors import BaseModelError


@dataclass(frozen=True)
class Pieces:
    """One tokenised text. starts, ends: character range of each token, None where they were not asked for."""

    ids: list[int]
    offsets: list[tuple[int, int]] | None


class Tokenizer:
    """A loaded tokenizer. `special_tokens`: name -> id of every special token it knows."""

    def __init__(self, backend: Any) -> None:
        """backend: a `tokenizers.Tokenizer`; its truncation, padding and special-token matching are switched off."""
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {
            token.content: index for index, token in sorted(added.items()) if token.special
        }

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json of a checkpoint folder, or convert its tokenizer.model. Raises BaseModelError."""
        from tokenizers import Tokenizer as Backend

        file = folder / "tokenizer.json"
        if file.is_file():
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise BaseModelError(f"{file} cannot be read: {error}") from error
            try:
                return cls(Backend.from_str(text))
            except Exception as error:  # tokenizers raises bare Exception for every kind of malformed file
                raise BaseModelError(f"{file} is not a tokenizer that can be read: {error}") from error
        if (folder / "tokenizer.model").is_file():
            return cls(_converted(folder))
        raise BaseModelError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model): copy it from the model's hub page into "
            "the folder"
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything the tokenizer is: vocabulary, merges, special tokens, normalisation."""
        return hashlib.sha256(self._backend.to_str(pretty=False).encode()).hexdigest()

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name, None where the vocabulary has no such token."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text, without bos or eos; literal special tokens in it stay ordinary text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode_text`, for many at once on all cores, without the cost of offsets."""
        return [item.ids for item in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_texts_with_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        """As `encode_texts`, with the character range that each token covers in its text."""
        batch = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [Pieces(item.ids, item.offsets) for item in batch]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; special tokens by name unless skipped."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def token_text(self, index: int) -> str:
        """One token as the vocabulary spells it, made readable: `▁` and `Ġ` are spaces, byte tokens stay `<0x0A>`."""
        if (piece := self._backend.id_to_token(index)) is None:
            return f"<id {index}>"
        if piece in self.special_tokens:
            return str(piece)
        if "▁" in piece:
            return str(piece).replace("▁", " ")
        text: str = self._backend.decode([index], skip_special_tokens=False)
        return text if text and "\ufffd" not in text else str(piece)


def _converted(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)._tokenizer
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        raise BaseModelError(
            f"{folder}/tokenizer.model could not be converted ({error}): put the tokenizer.json of the model's hub "
            "page beside it"
        ) from error
