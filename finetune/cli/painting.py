"""Rows of tokens as text for a terminal: what is trained in green, or in ⟦…⟧ where there is no colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from finetune.data.tokenizer import Tokenizer

SHOWN_TOKENS = 1200
"""A longer row is shown with its middle left out: about three screens."""


def legend(colour: bool) -> Text:
    """How trained and other tokens are told apart."""
    from rich.text import Text

    example = Text("trained", "bold green") if colour else Text("⟦trained⟧")
    return Text("\n").append_text(example).append(" / not trained", "dim" if colour else "")


def head(number: int, about: str, left_out: str | None, colour: bool) -> Text:
    """The line above a row: its number, where it stands and how long it is, and why it is left out, if it is."""
    from rich.text import Text

    line = Text(f"\nrow {number}", "bold").append(f"  {about}", "not bold")
    if left_out is not None:
        line.append(f"  LEFT OUT: {left_out}", "bold red" if colour else "")
    return line


def painted(ids: Sequence[int], trained: Sequence[int], tokenizer: Tokenizer, colour: bool) -> Text:
    """A row's text with its trained tokens in green, or in ⟦…⟧ without colour. Special tokens stand by their names."""
    from rich.text import Text

    shown = Text()
    special = set(tokenizer.special_tokens.values())
    hidden = range(0)
    if len(ids) > SHOWN_TOKENS:
        hidden = range(SHOWN_TOKENS // 2, len(ids) - SHOWN_TOKENS // 2)
    for begin, end in _runs(ids, trained, special, hidden):
        if begin in hidden:
            shown.append(f" … {end - begin:,} tokens … ", "dim italic" if colour else "")
            continue
        text = _visible(_text_of(ids[begin:end], tokenizer, ids[begin] in special))
        if not colour:
            opens = trained[begin] and (begin == 0 or not trained[begin - 1] or begin - 1 in hidden)
            closes = trained[begin] and (end == len(ids) or not trained[end] or end in hidden)
            shown.append(("⟦" if opens else "") + text + ("⟧" if closes else ""))
        else:
            bold = "bold " if ids[begin] in special else ""
            shown.append(text, f"{bold}green" if trained[begin] else f"{bold}dim")
    return shown


def _runs(ids: Sequence[int], trained: Sequence[int], special: set[int], hidden: range) -> Iterator[tuple[int, int]]:
    """(begin, end) of tokens that are shown as one piece of text: of like mask, all ordinary or one special."""
    edges = [0]
    for here in range(1, len(ids)):
        at_gap = len(hidden) > 0 and here in (hidden.start, hidden.stop)
        changes = trained[here] != trained[here - 1] or ids[here] in special or ids[here - 1] in special
        if at_gap or (changes and here not in hidden):
            edges.append(here)
    yield from pairwise([*edges, len(ids)] if len(ids) else [])


def _text_of(ids: Sequence[int], tokenizer: Tokenizer, special: bool) -> str:
    if special:
        return tokenizer.token_text(ids[0])
    text = tokenizer.decode(ids)
    # SentencePiece drops the space before the first word of what it decodes.
    lost = tokenizer.token_text(ids[0]).startswith(" ") and not text.startswith(" ")
    return f" {text}" if lost else text


def _visible(text: str) -> str:
    """Control characters by their codes: data must not steer the terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in text)
