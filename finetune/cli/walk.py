"""What the commands that train share: load, check, run, and say what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from finetune.errors import InputError
from finetune.recipe.load import check_recipe, load_recipe
from finetune.run import run_recipe


def walk(recipe: Path, overrides: Sequence[str], runs: Path, kinds: set[str] | None) -> None:
    """Run the stages of the given kinds (None: all) and what they read. Raises the errors of finetune.errors."""
    loaded = load_recipe(recipe, overrides)
    check_recipe(loaded)
    present = {stage.kind for stage in loaded.recipe.stages.values()}
    if kinds is not None and not kinds & present:
        raise InputError(
            f"{recipe} has no stage of kind {' or '.join(sorted(kinds))}; it has {', '.join(sorted(present))}"
        )
    run_recipe(loaded, runs, click.echo, kinds=kinds)
