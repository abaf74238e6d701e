"""What the server keeps out, cuts short and survives: bodies, other pages, crowds, clients that leave, its own end."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path

import pytest
from chat_lab import PLAIN
from serve_lab import GREEDY, Running, Slow, events, request, send, until

from finetune.chat.desk import AT_ONCE, WAITING
from finetune.chat.model import ChatModel
from finetune.chat.server import CONNECTIONS, Server
from finetune.errors import InputError


@pytest.mark.parametrize(
    ("headers", "raw", "status", "words"),
    [
        ({}, b'{"model": ', 400, "not valid JSON"),
        ({}, b"[]", 400, "a JSON object"),
        ({}, b'{"temperature": NaN}', 400, "NaN is no JSON"),
        ({}, b'{"temperature": 1e999}', 400, "1e999 is no JSON"),
        ({}, b'{"\\ud800": 1}', 400, "half of a pair"),
        ({}, b"\xff\xfe", 400, "not valid JSON"),
        ({}, b"[" * 100_000, 400, "nested too deeply"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "Content-Type: application/json"),
        ({"Content-Length": "99999999999"}, b"{}", 413, "at most"),
        ({"Content-Length": "9" * 5000}, b"{}", 413, "at most"),
        ({"Content-Length": "-1"}, b"{}", 411, "Content-Length"),
        ({"Transfer-Encoding": "chunked"}, b"2\r\n{}\r\n0\r\n\r\n", 411, "Content-Length"),
    ],
)
def test_bodies_that_are_none(running: Running, headers: dict, raw: bytes, status: int, words: str) -> None:
    found, _, body = running.ask("POST", "/v1/chat/completions", raw=raw, headers=headers)
    assert found == status and words in body["error"]["message"]


def test_a_huge_body_is_answered_while_it_is_still_coming(running: Running) -> None:
    status, headers, body = running.ask("POST", "/v1/chat/completions", raw=b"x" * 5_000_000)
    assert status == 413 and "5,000,000 bytes" in body["error"]["message"] and headers["Connection"] == "close"


def test_addresses_and_methods_that_are_not_there(running: Running) -> None:
    for method, path in (("GET", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/../page.js")):
        status, _, body = running.ask(method, path, {} if method == "POST" else None)
        assert status == 404 and "nothing at this address" in body["error"]["message"]
    for method in ("PUT", "OPTIONS", "DELETE"):
        status, headers, body = running.ask(method, "/v1/models")
        assert status == 501 and set(body) == {"error"}
        assert not any(name.lower().startswith("access-control") for name in headers)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert b"Bad request syntax" in connection.recv(4096)


def test_other_pages_and_names_do_not_get_in(running: Running) -> None:
    here = f"127.0.0.1:{running.port}"
    for headers, status in [
        ({"Host": "evil.example"}, 403),
        ({"Host": f"evil.example:{running.port}"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
        ({"Origin": f"http://localhost:{running.port}"}, 403),  # another page of this machine than the one asked
        ({"Host": f"localhost:{running.port}"}, 200),
        ({"Host": "LOCALHOST:9000"}, 200),  # a forwarded port
        ({"Origin": f"http://{here}"}, 200),
    ]:
        for method, path, body in (("GET", "/v1/models", None), ("POST", "/v1/chat/completions", GREEDY)):
            assert running.ask(method, path, body, headers)[0] == status, headers
    headers = running.ask("GET", "/")[1]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"]


def test_a_token_is_asked_for(chat: ChatModel, tmp_path: Path) -> None:
    running = Running(chat, tmp_path / "p.jsonl", token="a-token-of-many-letters", host="0.0.0.0")
    try:
        for shown in (
            None,
            "",
            "Bearer ",
            "Bearer another-token",
            "a-token-of-many-letters",
            "Bearer a-token-of-many-lettersé",
        ):
            headers = {} if shown is None else {"Authorization": shown}
            for method, path, body in (
                ("GET", "/v1/models", None), ("GET", "/finetune/about", None), ("POST", "/v1/chat/completions", GREEDY),
                ("POST", "/v1/completions", {}), ("POST", "/finetune/preferences", {}),
            ):  # fmt: skip
                status, found, answer = running.ask(method, path, body, headers)
                assert status == 401 and answer["error"]["code"] == "invalid_api_key"
                assert found["WWW-Authenticate"] == "Bearer"
        right = {"Authorization": "Bearer a-token-of-many-letters", "Host": "gpu-box.example:8000"}
        assert running.ask("POST", "/v1/chat/completions", GREEDY, right)[0] == 200
        assert running.ask("GET", "/")[0] == 200  # the page holds nothing; it asks for the token
        assert running.ask("GET", "/v1/models", None, {**right, "Origin": "https://evil.example"})[0] == 403
        assert not any("token-of" in line for line in running.said)
    finally:
        running.server.stop()


def test_with_a_token_a_proxy_may_use_its_own_name(chat: ChatModel, tmp_path: Path) -> None:
    running = Running(chat, tmp_path / "p.jsonl", token="a-token-of-many-letters")
    try:
        named = {"Host": "models.example", "Origin": "https://models.example"}
        assert running.ask("GET", "/v1/models", None, named)[0] == 401
        shown = {**named, "Authorization": "Bearer a-token-of-many-letters"}
        assert running.ask("GET", "/v1/models", None, shown)[0] == 200
    finally:
        running.server.stop()


def test_nothing_that_was_said_is_told(running: Running) -> None:
    running.complete()
    assert running.said and not any("Rome" in line or "What is" in line for line in running.said)
    assert any(line.startswith("plain: ") and "written" in line for line in running.said)


def test_one_connection_serves_many_requests(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", json.dumps({**GREEDY, "stream": True}),
                           {"Content-Type": "application/json"})  # fmt: skip
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    own = connection.sock
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 200 and connection.sock is own
    connection.close()


def test_an_old_proxy_gets_its_stream_too(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(request({**GREEDY, "stream": True}, "HTTP/1.0"))
        found = b""
        while piece := connection.recv(65536):
            found += piece
    _, _, text = found.decode().partition("\r\n\r\n")
    assert events(text)


def test_a_port_that_is_taken(running: Running) -> None:
    with pytest.raises(InputError, match=r"127.0.0.1:\d+ cannot be opened: Address already in use"):
        Server("127.0.0.1", running.port)
    with pytest.raises(InputError, match="cannot be opened"):
        Server("no.such.host.invalid", 0)


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_written_for(chat: ChatModel, tmp_path: Path, stream: bool) -> None:
    slow = Slow(chat)
    running = Running(slow, tmp_path / "p.jsonl")
    try:
        connection = send(running, stream=stream)
        until(lambda: slow.pieces > 5)
        connection.close()
        until(lambda: running.said)  # the request is over
        seen = slow.pieces
        time.sleep(0.1)
        assert slow.pieces == seen
        # its place is free again, and so is that of one who left while waiting
        slow.go_on.set()
        assert running.complete()[1]["choices"][0]["message"]["content"].endswith(PLAIN[-5:])
    finally:
        running.server.stop()


def test_many_wait_in_order_and_too_many_are_sent_away(chat: ChatModel, tmp_path: Path) -> None:
    slow = Slow(chat)
    running = Running(slow, tmp_path / "p.jsonl")
    try:
        first = [send(running) for _ in range(AT_ONCE)]
        until(lambda: slow.begun == AT_ONCE)
        waiting = [send(running) for _ in range(WAITING)]
        until(lambda: running.served.desk._places.waiting == WAITING)
        status, headers, body = running.ask("POST", "/v1/chat/completions", GREEDY)
        assert status == 429 and headers["Retry-After"] and body["error"]["code"] == "rate_limit_exceeded"
        assert slow.begun == AT_ONCE
        assert running.ask("GET", "/v1/models")[0] == 200  # what needs no model is answered
        waiting.pop().close()  # leaves the queue
        until(lambda: running.served.desk._places.waiting == WAITING - 1)
        slow.go_on.set()
        for connection in (*first, *waiting):
            assert b"200 OK" in connection.recv(65536)
            connection.close()
        assert slow.begun == AT_ONCE + WAITING - 1
    finally:
        running.server.stop()


def test_more_connections_than_there_are_threads_for(chat: ChatModel, tmp_path: Path) -> None:
    running = Running(chat, tmp_path / "p.jsonl")
    try:
        idle = [socket.create_connection(("127.0.0.1", running.port), timeout=10) for _ in range(CONNECTIONS)]
        until(lambda: len(running.served.connections) == CONNECTIONS)
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as one_more:
            assert one_more.recv(10) == b""
        for connection in idle:
            connection.close()
        until(lambda: not running.served.connections)
        assert running.complete()[0] == 200
    finally:
        running.server.stop()


def test_stopping_ends_what_is_being_written(chat: ChatModel, tmp_path: Path) -> None:
    slow = Slow(chat)
    running = Running(slow, tmp_path / "p.jsonl")
    connection, idle = send(running, stream=True), socket.create_connection(("127.0.0.1", running.port), timeout=10)
    until(lambda: slow.pieces > 5)
    began = time.monotonic()
    running.server.stop()
    assert time.monotonic() - began < 5
    text = b""
    while piece := connection.recv(65536):
        text += piece
    assert b"[DONE]" not in text  # a client sees that it was cut off
    assert idle.recv(10) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=2)
    running.thread.join(5)
    assert not running.thread.is_alive()
