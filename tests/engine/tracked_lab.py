"""Real runs with trackers, for the tests that read what these were told: a chain, killed, stopped and failing runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_wandb import FakeWandb
from stage_recipes import PAIRS, QUESTIONS, dpo_stage, reward_stage, sft_stage, train, write_jsonl
from wandb_records import Session, sessions

SECRET = "5ec2e7" * 6 + "5ec2"
"""Looks like a Weights & Biases key: 40 hex digits."""
SAMPLED = {"prompts": [{"path": "questions.jsonl", "take": 6}], "max_new_tokens": 5}
CHAIN: Mapping[str, Any] = {
    "sft": sft_stage(held_out={"fraction": 0.2}),
    "helpful": reward_stage(start_from="sft", train=train(max_steps=2)),
    "best": {"kind": "reject", "policy": "sft", "reward": "helpful", "samples": 3, "unfinished": "keep", **SAMPLED},
    "ppo": {
        **{"kind": "ppo", "start_from": "sft", "reward": "helpful", "held_out": {"fraction": 0.5}, **SAMPLED},
        **{"rollouts": 8, "iterations": 2, "train": {"batch_size": 4, "micro_batch_size": 2}},
    },
    "dpo": dpo_stage(start_from="sft", train=train(max_steps=2)),
    "mean": {"kind": "average", "of": ["ppo", "dpo"]},
    "oracle": sft_stage(engine="trl"),
}
TRACK = {
    "wandb": {"project": "the-project", "mode": "offline", "tags": ["a-tag"], "samples": 2, "artifacts": "outputs"},
    "tensorboard": True,
}
LONG = {"max_steps": 8, "checkpoint_every": 3, "eval_every": 2}


@dataclass(frozen=True)
class Tracked:
    """folders: of the stages, by recipe/stage; an unfinished one's is its work folder. contacted: the proxy was.
    server: what `online` runs, and a `wandb sync` of the killed one, were sent to."""

    root: Path
    folders: Mapping[str, Path]
    codes: list[int]
    printed: str
    contacted: bool
    server: FakeWandb

    def session(self, stage: str) -> Session:
        [found] = sessions(self.folders[stage])
        return found

    def lines(self, stage: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folders[stage] / "metrics.jsonl").read_text().splitlines()]

    def manifest(self, stage: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folders[stage] / "manifest.json").read_text())
        return content


def write_recipe(root: Path, base: Path, name: str, stages: Mapping[str, Any], track: Mapping[str, Any]) -> Path:
    content = {
        "name": name,
        "model": {"base": str(base), "load_in": "fp32", "max_length": 128},
        "adapter": {"rank": 4, "alpha": 8},
        "track": dict(track),
        "stages": dict(stages),
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tracked(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """All runs of this file, in one process that may open sockets to this machine only, with a key in its environment
    and a proxy that whoever wants to the network would call."""
    root = tmp_path_factory.mktemp("tracked")
    write_jsonl(root / "pairs.jsonl", PAIRS)
    write_jsonl(root / "questions.jsonl", QUESTIONS)

    def request(name: str, stages: Mapping[str, Any], *sets: str, **more: Any) -> dict[str, Any]:
        recipe = write_recipe(root, tiny_base, name, stages, TRACK)
        changes = [part for text in sets for part in ("--set", text)]
        return {"argv": ["run", str(recipe), "--runs", str(root / "runs"), *changes], **more}

    long = {"sft": sft_stage(held_out={"fraction": 0.2}, train=train(**LONG))}
    wild = {"sft": sft_stage(train=train(max_steps=3, learning_rate=1e30, max_grad_norm=None))}
    requests = [
        request("chain", CHAIN),
        request("killed", long, kill=8),
        request("killed", long),
        request("stopped", long, stop=4),
        request("wild", wild),
        request("killed", long),
    ]
    with socket.create_server(("127.0.0.1", 0)) as proxy, FakeWandb() as server:
        proxy.setblocking(False)
        online = {"WANDB_BASE_URL": server.address, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        for kill in ({"kill": 8}, {}):
            requests.append(request("online", long, "track.wandb.mode=online", env=online, **kill))
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        env = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_API_KEY": SECRET}
        env |= {name: address for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
        outside = tmp_path_factory.mktemp("outside")  # where wandb keeps the files of artifacts until they are synced
        env |= {"WANDB_DATA_DIR": str(outside), "WANDB_CACHE_DIR": str(outside)}
        script = Path(__file__).with_name("tracked_runs.py")
        args = [sys.executable, str(script), json.dumps(requests)]
        done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        written = sorted((root / "runs" / "killed").glob("*/wandb/offline-run-*"))
        copies = [str(shutil.copytree(path, outside / path.name)) for path in written]
        sync = [sys.executable, "-m", "wandb", "sync", *copies]
        synced = subprocess.run(sync, env={**env, **online}, capture_output=True, text=True, timeout=120)
        assert synced.returncode == 0, synced.stderr
        try:
            proxy.accept()
            contacted = True
        except BlockingIOError:
            contacted = False
    folders = {}
    for path in sorted((root / "runs").glob("*/*-*")):
        stage = f"{path.parent.name}/{path.name.rsplit('-', 1)[0]}"
        folders[stage] = path / "work" if path.suffix == ".part" else path
    return Tracked(root, folders, json.loads(done.stdout), done.stdout + done.stderr, contacted, server)
