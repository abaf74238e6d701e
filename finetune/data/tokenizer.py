"""The base's tokenizer, read with the light `tokenizers` library: 0.1 s to import, where transformers takes seconds.

Text is always tokenised as text: a literal `<|eot_id|>` or `</s>` in it gives the ids of its characters, never the
special token. Special tokens enter only by name, through `id_of`.
"""

from __future__ import annotations

import hashlib
import json
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

    def save(self, folder: Path, *, bos: str, eos: str, pad: str, chat_template: str | None) -> None:
        """Write tokenizer.json, tokenizer_config.json and, if any, chat_template.jinja: users get the ids of training.

        The class is the one that takes tokenizer.json as it is: under the name LlamaTokenizer, transformers 5 replaces
        its white space rule, and the text after each <s> of Llama 2 would get other ids than Meta's (and ours).
        """
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "clean_up_tokenization_spaces": False,
        }
        if "<unk>" in self.special_tokens:
            settings["unk_token"] = "<unk>"
        self._backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if chat_template is not None:
            (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")

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


_PROBES = ("Paris", "  two  spaces ", "\n\nline\n", "ä 🦙 日本語", "x = 12345; </s>", "")


def _converted(folder: Path) -> Any:
    """A sentencepiece BPE tokenizer.model as a `tokenizers.Tokenizer`, proved on a few texts against sentencepiece.

    Not by transformers' converter: version 5 loses the `▁` that begins every text, and the order of merges.
    """
    from sentencepiece import SentencePieceProcessor

    file = folder / "tokenizer.model"
    way_out = "put the tokenizer.json of the model's hub page beside it"
    try:
        source = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise BaseModelError(f"{file} is not a sentencepiece model that can be read: {way_out}") from error
    backend = _from_sentencepiece(source)
    backend.encode_special_tokens = True
    for text in _PROBES:
        if backend.encode(text, add_special_tokens=False).ids != source.encode(text):
            raise BaseModelError(f"{file} splits {text!r} otherwise once converted: {way_out}")
    return backend


def _from_sentencepiece(source: Any) -> Any:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, processors

    pieces = [source.id_to_piece(index) for index in range(source.get_piece_size())]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    made = [
        (-source.get_score(whole), vocab[piece[:cut]], vocab[piece[cut:]])
        for piece, whole in vocab.items()
        if not (source.is_control(whole) or source.is_unknown(whole) or source.is_byte(whole))
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    merges = [(pieces[left], pieces[right]) for _, left, right in sorted(made)]
    unknown, bos = pieces[source.unk_id()], pieces[source.bos_id()]
    backend = Backend(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([unknown, *(pieces[i] for i in range(len(pieces)) if source.is_control(i))])
    backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, source.bos_id())])
    return backend
