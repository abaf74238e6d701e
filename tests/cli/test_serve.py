"""`finetune serve` as a process: what it says, what it answers, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chat_lab import PLAIN, Lab, lab, tiny_base

from finetune.cli.main import main

__all__ = ["lab", "tiny_base"]

ASKED = {"messages": [{"role": "user", "content": "What is 3?"}], "temperature": 0}


@contextmanager
def serving(
    folder: Path, *args: str | Path, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """(process, its address, the lines that it said up to then)."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "finetune.cli.main", "serve", *(str(arg) for arg in args), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1",
            **environment,
        },
    )  # fmt: skip
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line.rstrip())
            if line.startswith("models: "):
                break
        address = next((found[1] for line in said if (found := re.search(r"open (http://\S+)/ in", line))), None)
        assert address is not None, said
        yield process, address, said
    finally:
        process.kill()
        process.wait()


def ask(address: str, path: str, body: object = None, token: str | None = None) -> dict:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    content = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address + path, content, headers), timeout=30) as response:
        return json.load(response)


@pytest.mark.slow
def test_a_recipe_is_served_until_ctrl_c(lab: Lab, tmp_path: Path) -> None:
    with serving(tmp_path, lab.folder / "recipe.yaml", "--runs", lab.folder / "runs") as (process, address, said):
        assert address.startswith("http://127.0.0.1:")
        assert (
            said[-1] == "models: letters, plain, base; what is preferred on the page is appended to preferences.jsonl"
        )
        assert not any("token, shown" in line for line in said)
        answer = ask(address, "/v1/chat/completions", {**ASKED, "model": "plain"})
        assert answer["choices"][0]["message"]["content"] == PLAIN
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        lines = rest.split("\n")
        assert "plain: " in lines[0] and "written" in lines[0] and lines[-2] == "stopped" and "Rome" not in rest
        assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []  # nothing is written unasked


@pytest.mark.slow
def test_beyond_loopback_a_token_is_needed(lab: Lab, tmp_path: Path) -> None:
    with serving(tmp_path, lab.runs["plain"], "--host", "0.0.0.0", FINETUNE_SERVE_TOKEN="") as (process, address, _):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("token, shown this once: ")
        token = line.split()[-1]
        assert "unencrypted" in process.stdout.readline()
        here = address.replace("0.0.0.0", "127.0.0.1")
        assert len(token) >= 32
        for wrong in (None, token[:-1], token + "x"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(here, "/v1/models", token=wrong)
            assert refused.value.code == 401
        assert len(ask(here, "/v1/models", token=token)["data"]) == 2
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 0 and token not in rest


def test_wrong_use(lab: Lab, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    recipe, plain = lab.folder / "recipe.yaml", lab.runs["plain"]
    runs = ("--runs", lab.folder / "runs")
    for args, words in [
        ((plain, "--port", port), f"127.0.0.1:{port} cannot be opened: Address already in use. Give another --port"),
        ((plain, "--port", 70000), "Invalid value for '--port'"),
        ((lab.runs["helpful"], "--port", 0), "scores answers and writes none"),
        ((tmp_path / "none",), "no such run or recipe"),
        ((plain, "--stage", "plain"), "--stage belongs to a recipe"),
        ((recipe, plain, *runs), "give one recipe, or folders"),
        ((recipe, "--stage", "nope", *runs), "has no stage 'nope'"),
        ((recipe, "--runs", tmp_path), f"`finetune run {recipe}` first (looked in {tmp_path}; --runs names"),
        ((plain, plain), "give each run once"),
        ((plain, lab.base, "--port", 0), "is a whole model: it stands alone"),
        ((plain, "--pairs", tmp_path / "none" / "p.jsonl"), "--pairs: no such folder"),
        ((), "Missing argument"),
    ]:
        capfd.readouterr()
        assert main(["serve", *(str(arg) for arg in args)]) == 2, args
        assert words in capfd.readouterr().err
    monkeypatch.setenv("FINETUNE_SERVE_TOKEN", "short")
    assert main(["serve", str(plain)]) == 2
    told = capfd.readouterr().err
    assert "FINETUNE_SERVE_TOKEN should have 16 letters" in told and "short" not in told
    taken.close()
