"""docs/troubleshooting.md: what it quotes is what the package says, and no complaint is left out."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from guides import ROOT, blocks, read

PAGE = "docs/troubleshooting.md"
LEAST = 12  # signs of a quote that are not …: fewer would be found anywhere


@cache
def said() -> tuple[str, ...]:
    """Every text in the package's source, with … where a value is put in."""
    texts = []
    for path in (ROOT / "finetune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


def messages() -> list[str]:
    return [line for block in blocks(PAGE) if block.language == "output" for line in block.code.splitlines() if line]


def is_said(message: str) -> bool:
    """Whether the pieces between … stand in one text of the source, in this order."""
    pieces = [piece for part in message.split("…") if (piece := part.strip(" (:;,.)"))]
    if sum(map(len, pieces)) < LEAST:
        return False
    pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
    return any(pattern.search(text) for text in said())


@pytest.mark.parametrize("message", messages())
def test_a_quoted_message_is_one_of_ours(message: str) -> None:
    assert is_said(message), f"{PAGE} quotes what finetune does not say: {message}"


def test_the_check_finds_what_is_wrong() -> None:
    assert len(messages()) > 25
    assert not is_said("the loss of step … is quite …: nothing was updated at all. Rows: …")
    assert not is_said("… : …")


COMPLAINTS = {  # of ../shared/reference/users_pain.md, by number: words that its part of the page has
    1: "does not stop", 2: "the pad token is another one", 3: "The wrong tokens are trained", 4: "Two begin tokens",
    5: "as with packing", 6: "depends on the micro-batch size", 7: "reference, first loss", 8: "PPO:",
    9: "The merged model is worse", 10: "resized embeddings", 11: "forgets its head", 12: "Rows are missing",
    13: "Served by vLLM on the 16-bit base", 14: "DeepSpeed", 15: "Resuming", 16: "complete or absent",
    17: "Out of memory", 18: "GGUF", 19: "Answers are worse elsewhere", 20: "breaks after an update",
    21: "Nothing has to be compiled", 22: "nan, infinite or 0", 23: "Preparing takes long", 24: "Rows are refused",
    25: "can never meet old tokens",
}  # fmt: skip


def test_every_complaint_is_answered() -> None:
    text = " ".join(read(PAGE).split())
    assert set(COMPLAINTS) == set(range(1, 26))
    for number, words in COMPLAINTS.items():
        assert words in text, f"complaint {number}"
