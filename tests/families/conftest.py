"""Tiny tokenizers for the family tests, and the pairs of family and tokenizer that belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_llama3_tokenizer, tiny_spm_tokenizer

from finetune.data.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """ "bpe" and "spm": folders with tokenizer.json and tokenizer_config.json."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {"bpe": tiny_llama3_tokenizer(root / "bpe"), "spm": tiny_spm_tokenizer(root / "spm")}


@pytest.fixture(scope="session")
def tokenizers(tokenizer_folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(folder) for name, folder in tokenizer_folders.items()}
