"""What `make quickstart` says at its end, where the training itself is too long for a test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """quickstart of the scripts folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("quickstart")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_it_ends_with_the_commands_that_the_readme_names(script: ModuleType) -> None:
    commands = script.next_commands(["--runs=runs"])
    assert "\n".join(commands) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_look_where_the_runs_are(script: ModuleType) -> None:
    for line in script.next_commands(["--runs=my runs", "--set=seed=18"]):
        assert line.endswith(" '--runs=my runs' --set=seed=18"), line


def test_preferences_kept_beside_the_project_are_not_committed() -> None:
    """`finetune chat` and `serve` append to preferences.jsonl where they are started."""
    assert "/preferences*.jsonl" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
