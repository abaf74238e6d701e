"""A small HTTP server before one model: OpenAI's addresses, a page to try and compare, and preferences.

The standard library's: one thread a connection, no more than CONNECTIONS of them, all with time limits, over a model
that answers a few at a time. It is made for one person or a small team; beyond that there is vLLM (docs/serve.md).
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any

from finetune.chat.handler import Handler
from finetune.chat.served import Served
from finetune.errors import InputError

CONNECTIONS = 64


class Server(ThreadingMixIn, TCPServer):
    """Holds its port from the beginning, and answers from `start` to `stop`. Raises InputError where the port cannot be
    had."""

    served: Served

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, host: str, port: int) -> None:
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(
                f"{host}:{port} cannot be opened: {why}. Give another --port (0: any that is free) or --host"
            ) from error

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self.served.connections) < CONNECTIONS

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):  # it left before it had asked
            super().handle_error(request, client_address)

    def start(self, served: Served) -> threading.Thread:
        """Serve in a thread of its own."""
        self.served = served
        thread = threading.Thread(target=self.serve_forever, name="server", kwargs={"poll_interval": 0.1})
        thread.start()
        return thread

    def stop(self) -> None:
        """End what is being answered at its next token, then close."""
        self.served.stopping.set()
        self.shutdown()
        for connection in list(self.served.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)  # idle ones wait for a request
        end = time.monotonic() + 5
        while self.served.connections and time.monotonic() < end:
            time.sleep(0.02)
        self.server_close()
        self.served.desk.close()
