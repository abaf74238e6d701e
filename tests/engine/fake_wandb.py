"""As much of a Weights & Biases server as a run needs: it keeps the rows of each run, and what was asked of it."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

PROJECT = {"id": "p", "name": "the-project", "entity": {"id": "e", "name": "me"}}


class FakeWandb:
    """rows: the history of each run, by its id. runs: what was said of each. asked: (operation, its variables)."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = json.dumps(server.answer(self.path, json.loads(body or b"{}"))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that was killed
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if found := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            if history := (body.get("files") or {}).get("wandb-history.jsonl"):
                rows = self.rows[found[1]]
                rows[history["offset"] :] = [json.loads(row) for row in history["content"]]
            return {}
        named = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
        name, given = named[1] if named else "", body.get("variables") or {}
        self.asked.append((name, given))
        return {"data": self._data(name, given)}

    def _data(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name == "UpsertBucket":
            run, is_new = given["name"], given["name"] not in self.rows
            rows = self.rows.setdefault(run, [])
            self.runs.setdefault(run, {}).update({key: value for key, value in given.items() if value is not None})
            bucket = {"id": f"id-{run}", "name": run, "displayName": run, "project": PROJECT, "config": "{}"}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(rows)}, "inserted": is_new}}
        if name == "RunResumeStatus":
            rows = self.rows.get(given["name"], [])
            bucket = {"id": f"id-{given['name']}", "name": given["name"], "summaryMetrics": "{}", "config": "{}"}
            tail = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]"}
            counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0, "tags": []}
            known = given["name"] in self.rows
            return {
                "model": {**PROJECT, "bucket": {**bucket, **tail, **counts, "wandbConfig": "{}"} if known else None}
            }
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.address}/up/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":  # of files that it has already, so that none is uploaded
            sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "RunStoppedStatus":
            return {"project": {"run": {"stopped": False}}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "0.31.0"}}}
