"""The command as a user runs it: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def finetune(root: Path, tmp_path: Path) -> Run:
    """finetune("check", "recipe.yaml") runs in an empty folder, or in `cwd`."""

    def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "100"}
        command = [sys.executable, "-m", "finetune.cli.main", *args]
        return subprocess.run(
            command, cwd=cwd or tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    return run
