"""An OpenAI-compatible judge on this machine, whose biases are known."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Decide = Callable[[str, str], str]
"""(first answer, second answer) -> the judge's reply."""
_ANSWERS = re.compile(r"<answer_1>\n(.*?)\n</answer_1>.*<answer_2>\n(.*?)\n</answer_2>", re.DOTALL)


def always_first(first: str, second: str) -> str:
    return "The first is better.\nVERDICT: 1"


def longer(first: str, second: str) -> str:
    return "VERDICT: TIE" if len(first) == len(second) else f"VERDICT: {1 if len(first) > len(second) else 2}"


@dataclass
class FakeJudge:
    """url: to give to --judge. asked: the requests it answered, as JSON. headers: theirs. fail: of request number n
    (from 0) the status to answer instead, None = none."""

    url: str = ""
    decide: Decide = longer
    fail: Callable[[int], int | None] = lambda number: None
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def fake_judge(decide: Decide = longer, fail: Callable[[int], int | None] = lambda number: None) -> Iterator[FakeJudge]:
    judge = FakeJudge(decide=decide, fail=fail)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                number, judge.requests = judge.requests, judge.requests + 1
            if (status := judge.fail(number)) is not None:
                self.send_response(status)
                self.send_header("Retry-After", "0")
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()
                self.wfile.write(b'{"error": {"message": "temperature is not supported"}}')
                return
            with judge.lock:
                judge.asked.append(content)
                judge.headers.append(dict(self.headers))
            found = _ANSWERS.search(content["messages"][-1]["content"])
            assert found is not None and self.path == "/v1/chat/completions"
            reply = {"choices": [{"message": {"role": "assistant", "content": judge.decide(*found.groups())}}]}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
