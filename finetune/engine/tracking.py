"""Where metrics go: metrics.jsonl in the run folder always, Weights & Biases when the recipe asks for it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from finetune.errors import InputError
from finetune.recipe.settings import WandbSettings

Metrics = Mapping[str, float | int | str | None]


class MetricsFile:
    """metrics.jsonl: one JSON object a line, each with `step` (optimiser steps done)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: those steps will be done, and logged, again."""
        if not self.path.is_file():
            return
        kept = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] > step or not line.endswith(b"\n"):
                    break
            except (ValueError, KeyError):
                break  # a line that a crash cut short
            kept += len(line)
        os.truncate(self.path, kept)  # needs no space, and a kill here loses nothing that is kept

    def write(self, metrics: Metrics) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


class Wandb:
    """A Weights & Biases run. The key comes from `wandb login` or WANDB_API_KEY; it is never read or written here."""

    def __init__(
        self, settings: WandbSettings, *, name: str, config: Mapping[str, Any], folder: Path, run_id: str
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InputError("track.wandb: wandb is not installed: pip install 'finetune[wandb]'") from error
        folder.mkdir(parents=True, exist_ok=True)
        # A user who said "send nothing" in the environment is obeyed, whatever the recipe says.
        told = os.environ.get("WANDB_MODE")
        sends_less: dict[str | None, Literal["offline", "disabled"]] = {"offline": "offline", "disabled": "disabled"}
        mode = sends_less.get(told, settings.mode)
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                tags=list(settings.tags) or None,
                name=name,
                id=run_id,
                resume="allow",
                mode=mode,
                dir=str(folder),
                config=dict(config),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    x_disable_stats=True,
                    x_disable_meta=True,  # host name, user name, paths and command line stay here
                    x_disable_machine_info=True,
                ),
            )
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            if isinstance(error, wandb.errors.CommError):
                cure = "Is the server reachable, and the project yours? mode: offline needs neither"
            else:
                cure = "Log in with `wandb login`, or set mode: offline"
            raise InputError(f"track.wandb: {reason}. {cure}") from error

    def log(self, metrics: Metrics) -> None:
        values = {key: value for key, value in metrics.items() if key != "step" and value is not None}
        self._run.log(values, step=int(metrics["step"] or 0))

    def close(self, *, failed: bool = False) -> None:
        self._run.finish(exit_code=1 if failed else 0)
