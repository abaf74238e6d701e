"""Answers as they are written, in a terminal: one as it comes, two side by side, in a pipe as plain text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finetune.chat.model import Piece, Reply

NARROW = 80
"""Columns below which two answers stand one below the other."""
_GAP = 3

Ask = Callable[[Sequence[str]], Iterator[Piece]]
"""Names to the pieces of their answers, side by side."""


@dataclass
class Screen:
    """out: where answers go. plain: no colours, names or times of ours beside them, as in a pipe."""

    out: Console
    plain: bool

    def show(self, ask: Ask, names: Sequence[str], stopped: Callable[[], bool]) -> list[Reply] | None:
        """Write the answers as they come. None where `stopped`, which is asked at every piece."""
        if len(names) == 1:
            return self._one_by_one(ask, names, stopped, named=False)
        if self.plain or self.out.width < NARROW:
            return self._one_by_one(ask, names, stopped, named=True)
        return self._side_by_side(ask, names, stopped)

    def _one_by_one(
        self, ask: Ask, names: Sequence[str], stopped: Callable[[], bool], *, named: bool
    ) -> list[Reply] | None:
        replies = []
        for name in names:
            if named:
                self.out.print(Text(f"{name}:", "bold"))
            began = time.monotonic()
            reply = None
            for piece in ask([name]):
                self.out.print(Text(visible(piece.text)), end="", soft_wrap=True)
                reply = piece.reply or reply
                if stopped():
                    break
            self.out.print()
            if reply is None:
                return None
            self._note(reply, time.monotonic() - began)
            replies.append(reply)
        return replies

    def _side_by_side(self, ask: Ask, names: Sequence[str], stopped: Callable[[], bool]) -> list[Reply] | None:
        texts, replies = dict.fromkeys(names, ""), dict[str, Reply]()
        began = time.monotonic()
        with Live(console=self.out, transient=True, auto_refresh=False) as live:
            shown = 0.0
            for piece in ask(names):
                texts[piece.name] += visible(piece.text)
                if piece.reply is not None:
                    replies[piece.name] = piece.reply
                if stopped():
                    break
                if time.monotonic() - shown > 0.05:  # a terminal is slower than a small model
                    live.update(self._columns(texts, last=max(3, self.out.height - 4)), refresh=True)
                    shown = time.monotonic()
        self.out.print(self._columns(texts))
        if len(replies) < len(names):
            return None
        for name in names:
            self._note(replies[name], time.monotonic() - began, f"{name}: ")
        return [replies[name] for name in names]

    def _columns(self, texts: dict[str, str], last: int | None = None) -> Table:
        """Both texts, or while they are written their last lines: what is above the screen cannot be drawn again."""
        table = Table.grid(padding=(0, _GAP, 0, 0), expand=True)
        width = (self.out.width - _GAP * len(texts)) // len(texts)
        cells = []
        for name, text in texts.items():
            table.add_column(ratio=1, overflow="fold")
            lines = Text(text).wrap(self.out, width)
            kept = lines[-last:] if last is not None else lines
            cells.append(Text("\n").join([Text(name, "bold"), *kept]))
        table.add_row(*cells)
        return table

    def _note(self, reply: Reply, seconds: float, name: str = "") -> None:
        if self.plain:
            return
        cut = "" if reply.finished else ", cut: --max-new-tokens, or no room left"
        self.out.print(Text(f"{name}{reply.tokens:,} tokens, {seconds:.1f} s{cut}", "dim"))


def visible(text: str) -> str:
    """Control characters by their codes: what a model writes must not steer the terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in text)
