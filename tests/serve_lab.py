"""A server in this process, and what its clients need: raw HTTP, streams, a model that takes its time."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from pathlib import Path

from finetune.chat.doors import Door
from finetune.chat.model import ChatModel
from finetune.chat.served import Served
from finetune.chat.server import Server

QUESTION = {"role": "user", "content": "What is 3?"}
GREEDY = {"model": "plain", "messages": [QUESTION], "temperature": 0, "max_tokens": 40}


class Running:
    """A server in this process. said: what it told the terminal."""

    def __init__(self, chat: ChatModel, pairs: Path, token: str | None = None, host: str = "127.0.0.1") -> None:
        self.said: list[str] = []
        self.served = Served(chat, Door(host, token), pairs, 64, self.said.append)
        self.server = Server("127.0.0.1", 0)
        self.port = self.server.port
        self.thread = self.server.start(self.served)

    def ask(self, method: str, path: str, body=None, headers=None, raw: bytes | None = None):
        """(status, headers, body), the body parsed where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        own = {"Content-Type": "application/json"} if content is not None else {}
        connection.request(method, path, content, {**own, **(headers or {})})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(text) if is_json else text.decode()

    def complete(self, **changes):
        status, _, body = self.ask("POST", "/v1/chat/completions", {**GREEDY, **changes})
        return status, body

    def refused(self, **changes) -> tuple[int, dict]:
        status, body = self.complete(**changes)
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        return status, body["error"]


def events(text: str) -> list[dict]:
    """The events of a stream that ended as it should."""
    parts = text.split("\n\n")
    assert parts.pop() == "" and parts.pop() == "data: [DONE]"
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


class Slow:
    """A model whose answers end when they are told to; counts the pieces that it was asked for."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat, self.pieces, self.begun, self.go_on = chat, 0, 0, threading.Event()
        self.names, self.family, self.system, self.room = chat.names, chat.family, chat.system, chat.room
        self.prompt = chat.prompt

    def stream(self, asked, names, settings):
        self.begun += 1

        def pieces():
            for piece in self.chat.stream(asked, names, settings):
                while piece.reply is not None and not self.go_on.wait(0.005):
                    self.pieces += 1
                    yield type(piece)(piece.name, "x", None, 0, 1)
                yield piece

        return pieces()


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def send(running: Running, **changes) -> socket.socket:
    """A request whose answer is not waited for."""
    connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
    connection.sendall(request({**GREEDY, **changes}, "HTTP/1.1"))
    return connection


def request(body, version: str) -> bytes:
    """A chat completion as it goes over the wire."""
    content = json.dumps(body).encode()
    lines = [
        f"POST /v1/chat/completions {version}",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content
