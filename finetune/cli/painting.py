"""Rows of tokens as text for a terminal: what is trained in green, or in ⟦…⟧ where there is no colour."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from finetune.data.look import LookedAt, Part
    from finetune.data.tokenizer import Tokenizer


def legend(colour: bool) -> Text:
    """How trained and other tokens are told apart."""
    from rich.text import Text

    example = Text("trained", "bold green") if colour else Text("⟦trained⟧")
    return Text("\n").append_text(example).append(" / not trained", "dim" if colour else "")


def head(row: LookedAt, colour: bool) -> Text:
    """The line above a row: its number, where it stands and how long it is, and why it is left out, if it is."""
    from rich.text import Text

    about = row.about or f"{row.tokens:,} tokens, {row.trained:,} trained"
    line = Text(f"\nrow {row.number}", "bold").append(f"  {row.where}: {about}", "not bold")
    if row.left_out is not None:
        line.append(f"  LEFT OUT: {row.left_out}", "bold red" if colour else "")
    return line


def answer_head(part: Part, colour: bool) -> Text:
    """The line above an answer."""
    from rich.text import Text

    return Text(f"-- {part.name}: {part.whole:,} tokens, {sum(part.trained):,} scored", "bold" if colour else "")


def painted(part: Part, tokenizer: Tokenizer, colour: bool) -> Text:
    """A part's text with its trained tokens in green, or in ⟦…⟧ without colour. Special tokens stand by their names."""
    from rich.text import Text

    from finetune.data.look import bracketed, spoken

    pieces = list(spoken(part, tokenizer))
    if not colour:
        return Text(bracketed(pieces))
    shown = Text()
    for piece in pieces:
        if piece.hidden:
            style = "dim italic"
        else:
            style = ("bold " if piece.special else "") + ("green" if piece.trained else "dim")
        shown.append(piece.text, style)
    return shown
