"""Texts at which an answer ends: what is told never holds a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Takes an answer's pieces in, gives out what may be told. ended: one of the texts was met."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.ended = False

    def feed(self, piece: str) -> str:
        """What can be told by now: up to the first of the texts, or to what may become the beginning of one."""
        if self.ended:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:  # the one that is complete first, however the text was cut into pieces
            self.ended, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_begun(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """What is still held when the answer is over."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many of the last letters of a text are the first ones of a stop text."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
