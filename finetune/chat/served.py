"""What all connections to the server share."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from finetune.chat.desk import Desk
from finetune.chat.doors import Door
from finetune.chat.model import ChatModel


@dataclass
class Served:
    """What all requests share. most_tokens: of an answer. say: one line a request, never of what it says."""

    model: ChatModel
    door: Door
    pairs: Path
    most_tokens: int
    say: Callable[[str], None]
    made: int = field(default_factory=lambda: int(time.time()))
    stopping: threading.Event = field(default_factory=threading.Event)

    connections: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.desk = Desk(self.model)


class Serving(Protocol):
    """A server, as its connections see it."""

    served: Served
