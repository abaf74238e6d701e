"""One connection to the server: what is at which address, and every error in OpenAI's shape."""

from __future__ import annotations

import json
import math
import select
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any, cast

from finetune.chat.desk import BusyError
from finetune.chat.model import PromptTooLongError
from finetune.chat.openai_replies import Answers
from finetune.chat.openai_requests import RequestError, Wanted, known_model, read_chat, read_completion
from finetune.chat.preference_requests import keep
from finetune.chat.preferences import count_preferences, ties_file
from finetune.chat.served import Served, Serving
from finetune.errors import FinetuneError, InputError

LONGEST_BODY = 2 * 2**20
"""Bytes of a request: about 500,000 tokens of text."""
MOST_DIGITS = 20
"""Of a body's length; Python refuses to make a number of thousands of them."""
TIME_LIMIT = 30.0
"""Seconds that a client may take to send something, or to take something in."""
_PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Handler(BaseHTTPRequestHandler):
    """One connection. server.served is what all share."""

    protocol_version = "HTTP/1.1"
    server_version = "finetune"
    sys_version = ""
    timeout = TIME_LIMIT
    disable_nagle_algorithm = True

    @property
    def _served(self) -> Served:
        return cast(Serving, self.server).served

    def setup(self) -> None:
        super().setup()
        self._served.connections.add(self.connection)

    def finish(self) -> None:
        self._served.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the library's line names the address as it was sent

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        self._send(RequestError(code, message or self.responses[HTTPStatus(code)][0]))

    def _answer(self, work: Callable[[], None]) -> None:
        """Every error becomes one in OpenAI's shape; a client that left is not one."""
        self._begun = False
        try:
            self._served.door.check_address(self.headers)
            work()
        except RequestError as error:
            self._refuse(error)
        except BusyError as error:
            self._refuse(RequestError(429, str(error), code="rate_limit_exceeded", kind="requests"))
        except PromptTooLongError as error:
            self._refuse(RequestError(400, str(error), param="messages", code="context_length_exceeded"))
        except InputError as error:
            self._refuse(RequestError(400, str(error)))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except FinetuneError as error:
            self._refuse(RequestError(500, str(error)))
        except Exception:  # it keeps its traceback, in the server's terminal
            if not self._begun:
                self._refuse(RequestError(500, "the server failed; its terminal says why"))
            raise

    def _get(self) -> None:
        served = self._served
        path = self.path.partition("?")[0]
        if path in _PAGE:
            name, kind = _PAGE[path]
            return self._send_bytes(200, _page(name), f"{kind}; charset=utf-8")
        served.door.check_token(self.headers)
        if path == "/v1/models":
            listed = [self._model(name) for name in served.model.names]
            return self._send_json(200, {"object": "list", "data": listed})
        if path.startswith("/v1/models/"):
            return self._send_json(200, self._model(known_model(path.removeprefix("/v1/models/"), served.model.names)))
        if path == "/finetune/about":
            return self._send_json(200, self._about())
        raise _nothing_at(path)

    def _post(self) -> None:
        served = self._served
        path = self.path.partition("?")[0]
        served.door.check_token(self.headers)
        names = served.model.names
        match path:
            case "/v1/chat/completions":
                body = self._body()
                self._complete(read_chat(body, names, served.most_tokens, served.model.family.is_chat), chat=True)
            case "/v1/completions":
                self._complete(read_completion(self._body(), names, served.most_tokens), chat=False)
            case "/finetune/preferences":
                self._send_json(200, keep(self._body(), served.pairs, names, served.model.system))
            case _:
                raise _nothing_at(path)

    def _complete(self, wanted: Wanted, *, chat: bool) -> None:
        served, began = self._served, time.monotonic()
        prompt_tokens = sum(len(served.model.prompt(asked).ids) for asked in wanted.asked)
        answers = Answers(served.desk, wanted, chat, self._gone, prompt_tokens)
        try:
            with served.desk.place(self._gone) as mine:
                if mine and wanted.stream:
                    self._send_events(answers)
                elif mine:
                    whole = answers.whole()
                    if self._gone():
                        raise ConnectionAbortedError
                    self._send_json(200, whole)
        finally:
            seconds = time.monotonic() - began
            served.say(f"{wanted.model}: {prompt_tokens:,} tokens read, {answers.tokens:,} written, {seconds:.1f} s")

    def _send_events(self, answers: Answers) -> None:
        old = self.request_version == "HTTP/1.0"  # some proxies speak so: the end of the connection ends the answer
        self.close_connection |= old
        self._chunked = not old
        self._head(200, "text/event-stream", {} if old else {"Transfer-Encoding": "chunked"})
        try:
            for event in answers.events():
                self._chunk(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")
            if self._gone():
                raise ConnectionAbortedError
            self._chunk("data: [DONE]\n\n")
        except FinetuneError as error:
            self._chunk(f"data: {json.dumps(RequestError(500, str(error)).body())}\n\n")
        if self._chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, text: str) -> None:
        content = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content) if self._chunked else content)

    def _gone(self) -> bool:
        """Nobody reads the answer: the server stops, or the client has closed its side."""
        if self._served.stopping.is_set():
            return True
        try:
            ready = select.select([self.connection], [], [], 0)[0]
            return bool(ready) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    def _body(self) -> object:
        """The request's JSON. Raises RequestError."""
        if self.headers.get_content_type() != "application/json":
            raise RequestError(415, "send JSON, with the header `Content-Type: application/json`")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise RequestError(411, "send the body with its Content-Length")
        if len(length) > MOST_DIGITS:
            raise RequestError(413, f"the body has more than the {LONGEST_BODY:,} bytes that are taken at most")
        if int(length) > LONGEST_BODY:
            raise RequestError(413, f"the body has {int(length):,} bytes, {LONGEST_BODY:,} at most")
        content, end = b"", time.monotonic() + TIME_LIMIT
        while len(content) < int(length):
            piece = self.rfile.read1(int(length) - len(content))
            if not piece or time.monotonic() > end:
                raise RequestError(408, "the body did not come in time")
            content += piece
        try:
            found = json.loads(content, parse_constant=_no_number, parse_float=_finite)
            _check_text(found)
            return found
        except (ValueError, RecursionError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise RequestError(400, f"the body is not valid JSON: {why}") from error

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._served.made, "owned_by": "finetune"}

    def _about(self) -> dict[str, Any]:
        """What the page needs to know."""
        served = self._served
        return {
            "models": list(served.model.names),
            "system": served.model.system,
            "chat": served.model.family.is_chat,
            "template": served.model.family.name,
            "room": served.model.room,
            "most_tokens": served.most_tokens,
            "pairs": str(served.pairs),
            "ties": str(ties_file(served.pairs)),
            "kept": count_preferences(served.pairs),
        }

    def _refuse(self, error: RequestError) -> None:
        self.close_connection = True  # its body may not be read
        with suppress(ConnectionError, TimeoutError):
            self._send(error)
            self._drain()

    def _send(self, error: RequestError) -> None:
        headers = {429: {"Retry-After": "2"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status, {})
        self._send_json(error.status, error.body(), headers)

    def _send_json(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        text = json.dumps(content, ensure_ascii=False).encode()
        self._send_bytes(status, text, "application/json", headers)

    def _send_bytes(self, status: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(content)), **(headers or {})})
        self.wfile.write(content)

    def _head(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self._begun = True
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers, **_SAFE}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _drain(self) -> None:
        """Take in what is still coming, for a moment: closed before, the client would see an error, not our answer."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1.0)
            left, end = 8 * LONGEST_BODY, time.monotonic() + 3
            while left > 0 and time.monotonic() < end and (piece := self.rfile.read1(65536)):
                left -= len(piece)


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON")


def _finite(word: str) -> float:
    """1e999 would be kept as Infinity, which is no JSON."""
    if not math.isfinite(found := float(word)):
        _no_number(word)
    return found


def _check_text(content: object) -> None:
    """Half of a surrogate pair can neither be kept in a file nor be named in an answer. Raises ValueError."""
    text = json.dumps(content, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half of a pair (U+{ord(text[error.start]):04X}), which is no character") from error


def _nothing_at(path: str) -> RequestError:
    return RequestError(
        404,
        "there are /, /v1/models, /v1/chat/completions and /v1/completions here, and nothing at this address",
        code="not_found",
    )


@cache
def _page(name: str) -> bytes:
    return (resources.files("finetune.chat") / "page" / name).read_bytes()
