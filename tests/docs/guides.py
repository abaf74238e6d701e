"""What is written in the project's markdown: files, headings, links, code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("docs/reference/recipe.md", "docs/reference/commands.md")
OUTSIDE = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", "datasets/quickstart/README.md",
    "models/quickstart/README.md", "notebooks/README.md",
)  # fmt: skip

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```[ ]*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)(?: \"[^\"]*\")?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence ("yaml", "text"), its code without its indentation, its first line."""

    path: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def pages() -> list[str]:
    """Paths in the repository of all markdown that the project shows to people."""
    docs = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    return [*OUTSIDE, *docs]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(path: str) -> Iterator[Block]:
    text = read(path)
    for found in _FENCE.finditer(text):
        indent, language, code = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        yield Block(path, line, language.strip(), "\n".join(row.removeprefix(indent) for row in code.splitlines()))


def prose(path: str) -> str:
    """The text without fenced blocks; as many lines as before."""
    return _FENCE.sub(lambda found: "\n" * found.group().count("\n"), read(path))


def links(path: str) -> list[tuple[int, str]]:
    """(line, target) of every link and picture outside code."""
    text = re.sub(r"`[^`\n]+`", lambda code: "x" * len(code.group()), prose(path))
    return [(text.count("\n", 0, link.start()) + 1, link[1]) for link in _LINK.finditer(text)]


def spans(path: str) -> list[tuple[int, str]]:
    """(line, text) of code within prose, a span over a line's end included."""
    text = prose(path)
    found = re.finditer(r"(?<!`)`([^`]+)`(?!`)", text)
    return [(text.count("\n", 0, span.start()) + 1, " ".join(span[1].split())) for span in found]


def anchors(path: str) -> set[str]:
    """The anchors that GitHub and the site both give to the headings."""
    slugs: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        kept = re.sub(r"[^\w\- ]", "", plain.lower())
        slugs.add(kept.replace(" ", "-"))
    return slugs
