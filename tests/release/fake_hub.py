"""A hub of one's own: the calls of huggingface_hub that publishing makes, answered from memory by a thread.

It keeps files as git and LFS do, checks the token, and can be told to fail: to refuse, to break a connection in the
middle of an upload, to be full. No network is used; only 127.0.0.1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
import yaml

LARGE = (".safetensors", ".gguf", ".model")


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    large: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=lambda: ["0" * 40])
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """user: who `token` belongs to. groups: organisations that it may write for. store: large files, by sha256.

    puts: sha256 of every large file that was sent. breaks_after: connections of uploads break after this many of them.
    full: refuses with this text when a commit is made.
    """

    token: str = "hf" + "_right"
    user: str = "me"
    groups: tuple[str, ...] = ("team",)
    repos: dict[str, Repo] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    breaks_after: int | None = None
    full: str | None = None
    address: str = ""

    def may_write(self, name: str) -> bool:
        return name.split("/")[0] in (self.user, *self.groups)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` until the block ends."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.calls.append(f"{self.command} {path}")
        try:
            if not path.startswith("/store/"):
                self._authorise()
            self._route(path)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self._answer({"error": refusal.message}, status=refusal.status, headers=headers)
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _answer(self, content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _json(self) -> Any:
        return json.loads(self.body)

    def _authorise(self) -> None:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if given:
            self.hub.tokens.add(given)
        if given != self.hub.token:
            raise Refusal(401, "Invalid credentials in Authorization header")

    def _route(self, path: str) -> None:
        hub = self.hub
        if path == "/api/whoami-v2":
            return self._answer({"type": "user", "name": hub.user, "orgs": [{"name": name} for name in hub.groups]})
        if path == "/api/agent-harnesses":
            return self._answer([])
        if path == "/api/validate-yaml":
            return self._validate()
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/collections":
            return self._collection()
        if found := re.fullmatch(r"/api/collections/(.+)/items", path):
            hub.collections[found[1]]["items"].append(self._json()["item"])
            return self._answer(_collection_json(hub.collections[found[1]]))
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self._repo(_key(found[1], found[2]), found[2], found[3] or "")
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch()
        if found := re.fullmatch(r"/store/([0-9a-f]{64})", path):
            return self._store(found[1])
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._resolve(_key("datasets" if found[1] else "models", found[2]), found[3])
        raise Refusal(404, f"the fake hub knows no {self.command} {path}")

    def _validate(self) -> None:
        content = self._json()["content"]
        metadata = yaml.safe_load(content.split("---\n")[1])
        if not isinstance(metadata.get("license"), str):
            raise Refusal(400, "license must be a string")
        self._answer({"errors": [], "warnings": []})

    def _create(self) -> None:
        hub, wanted = self.hub, self._json()
        owner = wanted["organization"] or hub.user
        name = f"{owner}/{wanted['name']}"
        if not hub.may_write(name):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        key = _key(f"{wanted.get('type', 'model')}s", name)
        if key in hub.repos:
            raise Refusal(409, "You already created this model repo")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        hub.repos[key] = Repo(private)
        self._answer({"url": f"{hub.address}/{name}", "name": name})

    def _collection(self) -> None:
        wanted = self._json()
        slug = f"{wanted['namespace']}/{wanted['title'].lower().replace(' ', '-')}-0123"
        if slug in self.hub.collections:
            return self._answer({"slug": slug}, status=409)
        made = {"slug": slug, "title": wanted["title"], "owner": wanted["namespace"], "items": []}
        self.hub.collections[slug] = made | {"private": wanted["private"]}
        self._answer(_collection_json(self.hub.collections[slug]))

    def _repo(self, key: str, name: str, rest: str) -> None:
        hub = self.hub
        repo = hub.repos.get(key)
        if repo is None or (repo.private and not hub.may_write(name)):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if rest == "" or rest.startswith("revision/"):
            siblings = [{"rfilename": file} for file in sorted(repo.files)]
            return self._answer({"id": name, "sha": repo.commits[-1], "private": repo.private, "siblings": siblings})
        if rest.startswith("tree/"):
            return self._answer([_entry(repo, file) for file in sorted(repo.files)])
        if not hub.may_write(name):
            raise Refusal(403, "Forbidden: you must use a write token")
        if rest == "preupload/main":
            modes = []
            for file in self._json()["files"]:
                mode = "lfs" if file["path"].endswith(LARGE) else "regular"
                oid = _entry(repo, file["path"])["oid"] if file["path"] in repo.files else None
                modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self._answer({"files": modes})
        if rest == "commit/main":
            return self._commit(repo, name)
        raise Refusal(404, f"the fake hub knows no {rest}")

    def _batch(self) -> None:
        objects = []
        for wanted in self._json()["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.store:
                entry["actions"] = {"upload": {"href": f"{self.hub.address}/store/{wanted['oid']}", "header": {}}}
            objects.append(entry)
        self._answer(
            {"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"}
        )

    def _store(self, oid: str) -> None:
        if self.hub.breaks_after is not None and len(self.hub.puts) >= self.hub.breaks_after:
            raise ConnectionAbortedError
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.puts.append(oid)
        self.hub.store[oid] = self.body
        self._answer({})

    def _commit(self, repo: Repo, name: str) -> None:
        if self.hub.full is not None:
            raise Refusal(403, self.hub.full)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repo.commits[-1]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del repo.files[value["path"]]
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.hub.store[value["oid"]]
                repo.large.add(value["path"])
            else:
                assert line["key"] == "file" and value["encoding"] == "base64"
                repo.files[value["path"]] = base64.b64decode(value["content"])
        repo.commits.append(hashlib.sha1(self.body).hexdigest())
        repo.messages.append(header["summary"])
        url = f"{self.hub.address}/{name}/commit/{repo.commits[-1]}"
        self._answer({"success": True, "commitOid": repo.commits[-1], "commitUrl": url, "hookOutput": ""})

    def _resolve(self, key: str, file: str) -> None:
        repo = self.hub.repos.get(key)
        if repo is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if file not in repo.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        raw = repo.files[file]
        headers = {"X-Repo-Commit": repo.commits[-1], "ETag": f'"{_entry(repo, file)["oid"]}"'}
        self._answer(raw, headers={"Content-Type": "application/octet-stream", **headers})


def _key(kind: str, name: str) -> str:
    return name if kind == "models" else f"{kind}/{name}"


def _entry(repo: Repo, file: str) -> dict[str, Any]:
    raw = repo.files[file]
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(raw)}
    if file in repo.large:
        digest = hashlib.sha256(raw).hexdigest()
        pointer = {"oid": digest, "size": len(raw), "pointerSize": 134}
        return entry | {"oid": hashlib.sha1(digest.encode()).hexdigest(), "lfs": pointer}
    return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()}


def _collection_json(collection: dict[str, Any]) -> dict[str, Any]:
    items = [{"_id": str(n), "id": item["id"], "type": item["type"]} for n, item in enumerate(collection["items"])]
    return {
        "slug": collection["slug"],
        "title": collection["title"],
        "owner": {"name": collection["owner"]},
        "items": [{**item, "position": n} for n, item in enumerate(items)],
        "lastUpdated": "2026-01-01T00:00:00.000Z",
        "position": 0,
        "private": collection["private"],
        "theme": "green",
        "upvotes": 0,
    }


@contextmanager
def asked_instead(monkeypatch: pytest.MonkeyPatch, no_token: Path) -> Iterator[Hub]:
    """A running hub that huggingface_hub talks to, with the right token in the environment alone."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with running(Hub()) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(no_token))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # the library waits between attempts
        monkeypatch.setenv("HF_TOKEN", found.token)
        yield found
