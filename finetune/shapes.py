"""The shapes of data behind the readers: what a row is, before a family turns it into tokens.

Floor 0: families render these, readers produce them, so they stand below both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. `trained` None = the family's rule (assistant turns are trained, others are not).

    `context` is Alpaca's separate `input` field of a user turn; families without a place for it
    append it to the content after a blank line. `tool_calls` only on assistant turns.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    context: str | None = None
    trained: bool | None = None


@dataclass(frozen=True)
class Dialog:
    """A conversation. `tools` are JSON-schema function descriptions as the row gave them."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A prompt and its continuation as raw text: no template, only the completion (and eos) is trained."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text for continued pre-training: bos + text + eos, all trained."""

    text: str


Example = Dialog | Completion | Text


@dataclass(frozen=True)
class Ranking:
    """Answers to one prompt, best first; two make a pair.

    prompt: the conversation up to the answers, ending with a user (or tool) turn. answers: each a Dialog's last turns,
    usually one assistant message. margin: the row's own margin column; rating: one of Llama 2's four, as RATINGS.
    """

    prompt: Dialog
    answers: tuple[tuple[Message, ...], ...]
    margin: float | None = None
    rating: str | None = None


RATINGS = ("significantly_better", "better", "slightly_better", "negligibly_better")


@dataclass(frozen=True)
class Judged:
    """One answer and whether it is desirable: unpaired data, for KTO."""

    prompt: Dialog
    answer: tuple[Message, ...]
    desirable: bool


Comparison = Ranking | Judged


@dataclass(frozen=True)
class Origin:
    """Where a row came from, for messages: `demo.jsonl:17`, or `org/name[train] row 17`."""

    source: str
    line: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        if self.line is not None:
            return f"{self.source}:{self.line}"
        return self.source if self.row is None else f"{self.source} row {self.row}"


@dataclass(frozen=True)
class Row:
    example: Example
    origin: Origin
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonRow:
    """As Row, for comparisons; extra holds the row's other columns, for reports by slice."""

    comparison: Comparison
    origin: Origin
    extra: Mapping[str, Any] = field(default_factory=dict)
