"""Taking turns: a lock, of one place or more, that is given to whoever has waited longest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

POLL = 0.25
"""Seconds after which one who waits is asked whether he still does."""


class Turns:
    """`with turns:` holds a place. threading.Lock may go to the thread that has just let it go, again and again: a
    thread that takes it for every token would keep the others waiting until its answer ends."""

    def __init__(self, places: int = 1) -> None:
        self._guard = threading.Lock()
        self._free = places
        self._waiting: deque[threading.Event] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, gave_up: Callable[[], bool] | None = None) -> bool:
        """Wait for a place, to be given back with `leave`. False where `gave_up`, asked now and then, said so."""
        with self._guard:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            while not mine.wait(None if gave_up is None else POLL):
                if gave_up is not None and gave_up() and self._step_back(mine):
                    return False
        except BaseException:  # Ctrl-C while it waits
            if not self._step_back(mine):
                self.leave()
            raise
        return True

    def leave(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # the place is the other's now
            else:
                self._free += 1

    def _step_back(self, mine: threading.Event) -> bool:
        """Wait no longer; False where the place has come meanwhile."""
        with self._guard:
            if mine.is_set():
                return False
            self._waiting.remove(mine)
            return True

    def __enter__(self) -> None:
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()
