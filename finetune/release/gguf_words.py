"""A tokenizer as GGUF holds it: byte-level BPE (Llama 3) or SentencePiece (LLaMA 1, Llama 2), read from tokenizer.json.

llama.cpp tokenises by its own code. Its BPE takes the merges as they are; its SentencePiece joins, at each step, the
neighbours whose joint piece has the highest score, so scores have to order pieces as the merges do: the original ones
of tokenizer.model where it lies beside, else minus the rank of the merge that makes the piece.

`encode_like_llama_cpp` is that code once more, for a proof without llama.cpp: what the written file would give.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gguf import TokenType

from finetune.errors import BaseModelError, InputError
from finetune.plan.base_files import read_json

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
"""The word pattern that llama.cpp calls llama-bpe."""
_LOWEST = -1e6  # of an added piece, which no merge makes


@dataclass(frozen=True)
class Words:
    """kind: llama.cpp's name of the tokenizer. types: TokenType numbers. scores: SentencePiece only. merges: BPE only.

    pieces: one an id, up to the model's vocabulary. special: name -> id.
    """

    kind: Literal["gpt2", "llama"]
    pieces: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    special: Mapping[str, int]
    adds_bos: bool

    @cached_property
    def ids(self) -> dict[str, int]:
        """piece -> id."""
        return {piece: index for index, piece in enumerate(self.pieces)}

    @cached_property
    def bpe(self) -> Any:
        """llama-bpe of these pieces and merges, as a `tokenizers.Tokenizer`."""
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        normal = {piece: i for i, piece in enumerate(self.pieces) if self.types[i] == TokenType.NORMAL}
        pairs = [(pair.partition(" ")[0], pair.partition(" ")[2]) for pair in self.merges]
        backend = Tokenizer(models.BPE(normal, pairs, ignore_merges=True))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return backend


def read_words(folder: Path, vocab_size: int) -> Words:
    """The tokenizer of a checkpoint folder. Raises InputError for one that llama.cpp's code would split otherwise."""
    content = read_json(folder / "tokenizer.json")
    if content is None:
        raise BaseModelError(f"{folder} has no tokenizer.json")
    model = content["model"]
    if model.get("type") != "BPE":
        raise InputError(f"{folder}: a {model.get('type')} tokenizer is none of LLaMA's: GGUF has no form for it here")
    added = {token["content"]: token for token in content.get("added_tokens", [])}
    ids = {**model["vocab"], **{name: token["id"] for name, token in added.items()}}
    if max(ids.values()) >= vocab_size:
        raise InputError(f"{folder}: the tokenizer has the id {max(ids.values())}, the model {vocab_size} words")
    names = {index: name for name, index in ids.items()}
    # Ids that the tokenizer leaves free have no name of their own in GGUF either.
    pieces = [names.get(index, f"[PAD{index}]") for index in range(vocab_size)]
    special = {name: token["id"] for name, token in added.items() if token.get("special")}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    adds_bos = '"SpecialToken"' in json.dumps(content.get("post_processor"))
    if model.get("byte_fallback"):
        _check_sentencepiece(folder, content)
        types = [_sentencepiece_type(piece, index in names, added, model) for index, piece in enumerate(pieces)]
        scores = _scores(folder, pieces, ids, merges)
        return Words("llama", pieces, types, scores, (), special, adds_bos)
    _check_llama3(folder, content)
    types = [_bpe_type(piece, index in names, added) for index, piece in enumerate(pieces)]
    return Words("gpt2", pieces, types, (), merges, special, adds_bos)


def _check_sentencepiece(folder: Path, content: Mapping[str, Any]) -> None:
    normalizers = (content.get("normalizer") or {}).get("normalizers", [])
    kinds = [(item.get("type"), item.get("prepend") or item.get("content")) for item in normalizers]
    if kinds != [("Prepend", "▁"), ("Replace", "▁")] or content.get("pre_tokenizer") is not None:
        raise InputError(
            f"{folder}: tokenizer.json treats white space otherwise than LLaMA's SentencePiece (▁ before the text and "
            "for spaces): llama.cpp would give other ids"
        )


def _check_llama3(folder: Path, content: Mapping[str, Any]) -> None:
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers", [])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    level = [step for step in steps if step.get("type") == "ByteLevel"]
    plain = len(level) == 1 and not level[0].get("add_prefix_space") and not level[0].get("use_regex")
    if patterns != [LLAMA3_SPLIT] or not plain or not content["model"].get("ignore_merges"):
        raise InputError(
            f"{folder}: tokenizer.json splits words otherwise than Llama 3's: llama-bpe would give other ids"
        )


def _bpe_type(piece: str, is_there: bool, added: Mapping[str, Any]) -> int:
    if not is_there:
        return int(TokenType.UNUSED)
    if piece in added:
        return int(TokenType.CONTROL if added[piece].get("special") else TokenType.USER_DEFINED)
    return int(TokenType.NORMAL)


def _sentencepiece_type(piece: str, is_there: bool, added: Mapping[str, Any], model: Mapping[str, Any]) -> int:
    if is_there and piece == model.get("unk_token"):
        return int(TokenType.UNKNOWN)
    if is_there and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return int(TokenType.BYTE)
    return _bpe_type(piece, is_there, added)


def _scores(folder: Path, pieces: Sequence[str], ids: Mapping[str, int], merges: Sequence[str]) -> list[float]:
    found = dict.fromkeys(pieces, 0.0)
    for rank, merge in enumerate(reversed(merges)):  # the first merge that makes a piece speaks last
        left, _, right = merge.partition(" ")
        found[left + right] = float(rank - len(merges))
    if (folder / "tokenizer.model").is_file():
        from sentencepiece import SentencePieceProcessor

        original = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        for index in range(original.get_piece_size()):
            found[original.id_to_piece(index)] = original.get_score(index)
        for piece in pieces:
            if original.piece_to_id(piece) == original.unk_id() and piece != original.id_to_piece(original.unk_id()):
                found[piece] = _LOWEST
    return [found[piece] for piece in pieces]


def encode_like_llama_cpp(words: Words, text: str) -> list[int]:
    """Ids of a text without special tokens, by llama.cpp's rules, from what the file holds."""
    if words.kind == "llama":
        return _sentencepiece(words, text)
    ids: list[int] = words.bpe.encode(text).ids
    return ids


def _sentencepiece(words: Words, text: str) -> list[int]:
    """Join the neighbours with the highest score, the leftmost first among equals; bytes for what has no piece."""
    ids = words.ids
    symbols = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        best: tuple[float, int] | None = None
        for at in range(len(symbols) - 1):
            index = ids.get(symbols[at] + symbols[at + 1])
            if index is not None and (best is None or words.scores[index] > best[0]):
                best = (words.scores[index], at)
        if best is None:
            break
        symbols[best[1] : best[1] + 2] = [symbols[best[1]] + symbols[best[1] + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found
