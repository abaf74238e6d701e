"""What the commands that run stages share: load, check, run, and say what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.figures import main_figures, summary_table
from finetune.data.check_data import check_data
from finetune.durable import rename_file, write_bytes
from finetune.errors import InputError
from finetune.execute import Lines, run_recipe
from finetune.plan.choose import choose
from finetune.plan.manifest import read_manifest
from finetune.plan.plan import PlannedStage, make_plan
from finetune.plan.reasons import why
from finetune.recipe.load import LoadedRecipe, check_recipe, load_recipe

if TYPE_CHECKING:
    from finetune.cli.tree import Tree


def walk(
    recipe: Path,
    overrides: Sequence[str],
    runs: Path,
    kinds: set[str] | None,
    *,
    until: str | None = None,
    begin: str | None = None,
) -> None:
    """Run the stages of the given kinds and what they read; None: all between begin and until, with a summary.

    Raises the errors of finetune.errors.
    """
    loaded = _loaded(recipe, overrides)
    present = {stage.kind for stage in loaded.recipe.stages.values()}
    if kinds is not None and not kinds & present:
        raise InputError(
            f"{recipe} has no stage of kind {' or '.join(sorted(kinds))}; it has {', '.join(sorted(present))}"
        )
    began = time.monotonic()
    screen = _screen()
    say = click.echo if isinstance(screen, Lines) else screen.say
    run_recipe(loaded, runs, say, kinds=kinds, until=until, begin=begin, screen=screen)
    if kinds is None:
        _sum_up(screen.stages, runs / loaded.recipe.name, time.monotonic() - began)


def dry_walk(
    recipe: Path, overrides: Sequence[str], runs: Path, *, until: str | None = None, begin: str | None = None
) -> None:
    """Say which stages would run and why, as `walk` would choose them. Writes nothing."""
    loaded = _loaded(recipe, overrides)
    plan = make_plan(loaded, runs)
    stages = choose(plan, until=until, begin=begin)
    for stage in stages:
        if stage.state == "done":
            click.echo(f"{stage.name} ({stage.kind}): already done, nothing to do: {stage.folder}")
        else:
            click.echo(f"{stage.name} ({stage.kind}): would run into {stage.folder}")
            for reason in why(plan, stage):
                click.echo(f"  why: {reason}")
    left = sum(stage.state != "done" for stage in stages)
    click.echo(f"{left} of {len(stages)} stages would run. This was a dry run: nothing was written.")


def _loaded(recipe: Path, overrides: Sequence[str]) -> LoadedRecipe:
    loaded = load_recipe(recipe, overrides)
    check_recipe(loaded)
    check_data(loaded)
    return loaded


def _screen() -> Lines | Tree:
    """A live tree where somebody watches, lines for a file or a pipe."""
    if not sys.stderr.isatty():
        return Lines()
    from finetune.cli.tree import Tree

    return Tree()


def _sum_up(stages: Sequence[PlannedStage], folder: Path, seconds: float) -> None:
    """One table of the walk's stages, shown and kept as summary.md. stages: as they stood before."""
    rows = []
    for stage in stages:
        if (manifest := read_manifest(stage.folder)) is None:
            continue  # somebody moved it away meanwhile
        state = "done before" if stage.state == "done" else "done"
        rows.append((stage.name, stage.kind, state, manifest.get("seconds"), main_figures(stage.kind, manifest)))
    table = summary_table(rows, seconds)
    click.echo("\n" + table)
    part = folder / "summary.md.part"
    write_bytes(part, f"{table}\n".encode())
    rename_file(part, folder / "summary.md")
