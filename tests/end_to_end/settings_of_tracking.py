"""What settings of trackers change."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from settings_lab import Lab, Seen, T, command

from finetune.recipe import settings


def wandb(lab: Lab) -> None:
    assert [path for path in (lab.run().folder or Path()).rglob("*wandb*")] == []
    assert wandb_files(lab)


def wandb_project(lab: Lab) -> None:
    assert any(b"the-project" in content for content in wandb_files(lab).values())


def wandb_entity(lab: Lab) -> None:
    assert any(b"the-team" in content for content in wandb_files(lab).values())


def wandb_tags(lab: Lab) -> None:
    assert any(b"the-tag" in content for content in wandb_files(lab).values())


def wandb_mode(lab: Lab) -> None:
    """offline needs no key and writes files; online asks for a key and, without one, ends before training.

    In a process of its own: in this one, wandb remembers the key that it was given.
    """
    assert any("offline-run" in name for name in wandb_files(lab))
    folder = lab.root / "online"
    folder.mkdir()
    recipe = lab.recipe({"track.wandb": {"project": "the-project"}}, folder)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env = {**kept, "HOME": str(folder), "NETRC": str(folder / "none"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    args = [sys.executable, "-m", "finetune.cli.main", "sft", str(recipe), "--runs", str(folder / "runs")]
    done = subprocess.run(args, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "track.wandb" in done.stderr and "`wandb login`" in done.stderr and "mode: offline" in done.stderr
    assert "Traceback" not in done.stderr and "step 1/" not in done.stderr


def wandb_samples(lab: Lab) -> None:
    rows = [{"prompt": f"p{row}", "answer": f"a{row}"} for row in range(5)]
    assert [len(told(lab, rows, samples=most)["tables"]) for most in (0, 2)] == [0, 2]


def wandb_artifacts(lab: Lab) -> None:
    assert told(lab, [], artifacts="none")["artifacts"] == []
    [made] = told(lab, [], artifacts="outputs")["artifacts"]
    assert "adapter_model.safetensors" in made


def told(lab: Lab, rows: list[dict[str, str]], **values: Any) -> dict[str, list[Any]]:
    """What an offline run has after a table of `rows` and an end with the lab's run folder as what was made."""
    from finetune.engine.lineage import Lineage
    from finetune.engine.tracking import End
    from finetune.engine.wandb_file import read_records
    from finetune.engine.wandb_tracker import WandbTracker

    folder = lab.root / f"told{len(list(lab.root.glob('told*')))}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(lab.root / "artifacts"))
        tracker = WandbTracker(
            settings.WandbSettings(project="p", mode="offline", **values),
            Lineage("count", "sft", "sft", "f" * 64, "count-0", {}, {}, {}),
            {},
            folder,
            lambda line: None,
        )
        tracker.samples(0, "said", 1, rows)
        tracker.close(End("finished", {}, {}, lab.run().folder))
    [written] = folder.glob("wandb/offline-run-*/*.wandb")
    made = [record.artifact for record in read_records(written.read_bytes()) if record.HasField("artifact")]
    tables = [json.loads(path.read_text())["data"] for path in folder.rglob("*.table.json")]
    return {
        "tables": [row for table in tables for row in table],
        "artifacts": [[c.path for c in one.manifest.contents] for one in made if one.type != "run_table"],
    }


def tensorboard(lab: Lab) -> None:
    seen = lab.run({"track.tensorboard": True})
    assert seen.folder is not None and lab.run().folder is not None
    assert [path.name for path in seen.folder.glob("tensorboard/*")] == ["events.out.tfevents.0000"]
    assert not list((lab.run().folder or Path()).glob("tensorboard"))


SECRET = "5ec2e7" * 6 + "5ec2"
"""Looks like a Weights & Biases key: 40 hex digits."""
WANDB = {"project": "the-project", "entity": "the-team", "tags": ["the-tag"], "mode": "offline"}


def wandb_files(lab: Lab) -> Mapping[str, bytes]:
    """Files that a run with Weights & Biases leaves, interrupted and resumed; nothing of it was sent anywhere."""
    changes = {"track.wandb": WANDB, T + "max_steps": 6}
    key = "the wandb run"
    if key not in lab.done:
        with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
            server.setblocking(False)
            patch.setenv("WANDB_API_KEY", SECRET)
            patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
            folder = lab.root / "wandb"
            folder.mkdir()
            recipe = lab.recipe(changes, folder)
            with lab.counted(interrupt_in_step=3):
                assert command("sft", recipe, "--runs", folder / "runs")[0] == 130
            code, printed = command("sft", recipe, "--runs", folder / "runs")
            assert code == 0 and SECRET not in printed
            with pytest.raises(BlockingIOError):
                server.accept()
        [found] = (folder / "runs" / "count").iterdir()
        lab.done[key] = Seen(code, printed, folder=found)
    run = lab.done[key].folder
    assert run is not None
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


CHECKS: Mapping[str, Callable[[Lab], object]] = {
    "TrackSettings.wandb": wandb,
    "WandbSettings.project": wandb_project,
    "WandbSettings.mode": wandb_mode,
    "WandbSettings.entity": wandb_entity,
    "WandbSettings.tags": wandb_tags,
    "WandbSettings.samples": wandb_samples,
    "WandbSettings.artifacts": wandb_artifacts,
    "TrackSettings.tensorboard": tensorboard,
}
