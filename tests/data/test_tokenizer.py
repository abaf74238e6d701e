"""The tokenizer: text stays text, whatever it says; broken files end in one clear message."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import LLAMA3_SPECIALS, tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data.tokenizer import Tokenizer
from finetune.errors import BaseModelError

TEXTS = ["Paris", "", " two  spaces ", "\n\nline\n", "ä 🦙 日本語", "</s><s><unk> <|eot_id|>", "12345"]


@pytest.fixture(scope="module", params=[tiny_llama3_tokenizer, tiny_spm_tokenizer], ids=["bpe", "spm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("tokenizer"))


def test_text_comes_back_and_holds_no_special_id(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    injection = " ".join([*LLAMA3_SPECIALS, "<s>", "</s>", "<unk>"])
    for text in [*TEXTS, injection]:
        ids = tokenizer.encode_text(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.special_tokens.values())


def test_the_three_ways_to_encode_agree_and_offsets_cover_the_text(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    with_offsets = tokenizer.encode_texts_with_offsets(TEXTS)
    assert [piece.ids for piece in with_offsets] == tokenizer.encode_texts(TEXTS)
    assert tokenizer.encode_texts(TEXTS) == [tokenizer.encode_text(text) for text in TEXTS]
    for text, piece in zip(TEXTS, with_offsets, strict=True):
        assert piece.offsets is not None and len(piece.offsets) == len(piece.ids)
        covered = {index for start, end in piece.offsets for index in range(start, end)}
        assert covered == set(range(len(text)))


def test_names_ids_and_single_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for name, index in tokenizer.special_tokens.items():
        assert tokenizer.id_of(name) == index < tokenizer.vocab_size
        assert tokenizer.token_text(index) == name
    assert tokenizer.id_of("<|no such token|>") is None
    shown = "".join(map(tokenizer.token_text, tokenizer.encode_text("The capital")))
    assert shown.strip() == "The capital"


def test_fingerprint_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    name = next(reversed(tokenizer.special_tokens))
    (tmp_path / "tokenizer.json").write_text(text.replace(name, "<renamed>"), encoding="utf-8")
    assert Tokenizer.load(tmp_path).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": b"{"}, "not a tokenizer that can be read"),
        ({"tokenizer.json": b"\xff\xfe"}, "cannot be read"),
        ({"tokenizer.model": b"no model"}, "not a sentencepiece model"),
    ],
)
def test_refusals(files: dict[str, bytes], words: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BaseModelError, match=words):
        Tokenizer.load(tmp_path)


def test_a_lone_sentencepiece_model_gives_the_ids_of_tokenizer_json(shared: Path, tmp_path: Path) -> None:
    source = shared / "tokenizers" / "llama2"
    (tmp_path / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    converted, ready = Tokenizer.load(tmp_path), Tokenizer.load(source)
    assert dict(converted.special_tokens) == dict(ready.special_tokens)
    assert converted.encode_texts(TEXTS) == ready.encode_texts(TEXTS)


def test_metas_llama3_file_is_refused_with_a_way_out(shared: Path, tmp_path: Path) -> None:
    source = shared / "tokenizers" / "llama3" / "tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    with pytest.raises(BaseModelError, match=r"put the tokenizer\.json"):
        Tokenizer.load(tmp_path)
