"""Taking turns: a lock that is given to whoever has waited longest."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class Turns:
    """`with turns:` holds it. threading.Lock may go to the thread that has just let it go, again and again: a thread
    that takes it for every token would keep the others waiting until its answer ends."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            mine.wait()
        except BaseException:  # Ctrl-C while it waits: the turn goes to the next one
            with self._guard:
                if not mine.is_set():
                    self._waiting.remove(mine)
                    raise
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # held on, by another
            else:
                self._held = False
