"""One model and many who ask: a few are answered side by side, some wait in order, the rest are sent away.

All products are made on one thread, a piece of each answer in turn: the libraries keep a pool of threads for every
thread that they are called from.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from finetune.chat.model import Answering, Asked, ChatModel, Piece
from finetune.chat.turns import Turns
from finetune.errors import FinetuneError

AT_ONCE = 4
"""Requests answered side by side: each is that much slower, but short ones do not wait for long ones."""
WAITING = 16
"""Requests that may wait for a place."""


class BusyError(FinetuneError):
    """Too many wait already."""


class Desk:
    """model: only what is not computed may be asked of it directly (names, prompt, room)."""

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self._places = Turns(AT_ONCE)
        self._thread = ThreadPoolExecutor(1, "model")

    @contextmanager
    def place(self, gone: Callable[[], bool]) -> Iterator[bool]:
        """Wait for a place, and give it back at the end. False where `gone` said that nobody waits for the answer.

        Raises BusyError.
        """
        if self._places.waiting >= WAITING:
            raise BusyError(f"{AT_ONCE} requests are being answered and {WAITING} wait: ask again in a moment")
        if not self._places.take(gone):
            yield False
            return
        try:
            yield True
        finally:
            self._places.leave()

    def pieces(self, asked: Asked, name: str, settings: Answering, gone: Callable[[], bool]) -> Iterator[Piece]:
        """As `ChatModel.stream`; ends early where `gone`, which is asked before every piece. Hold a place for it."""
        pieces = self.model.stream(asked, [name], settings)
        while not gone():
            piece = self._thread.submit(next, pieces, None).result()
            if piece is None:
                return
            yield piece

    def close(self) -> None:
        """Wait for the token in hand, and no more."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def new_seed() -> int:
    return secrets.randbits(31)
