"""Recipes and bases made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that has what a LLaMA checkpoint has, as far as can be told without loading it."""
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write the text as recipe.yaml; the data file that recipes here name lies beside it."""

    def write_recipe(text: str) -> Path:
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe
