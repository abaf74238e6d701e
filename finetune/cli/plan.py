"""`finetune plan`: what a recipe would do, and what it would need."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.given_runs import where_runs_lie
from finetune.cli.options import recipe_options

if TYPE_CHECKING:
    from finetune.plan.estimate import Estimate


@click.command()
@recipe_options
def plan(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Show the stages in order: what each reads, what is done, where each run lies, and what it needs.

    Of a stage that is to be run it is said why: never run, interrupted, or what has changed since it last was. Nothing
    is trained and no weight is loaded. The memory is an upper bound, every row max_length long, of what lies on the
    device: weights, adapters, optimiser, activations. Python and its libraries come on top.

    \b
    Example:
      finetune plan recipe.yaml
    """
    from finetune.data.check_data import check_data
    from finetune.plan.plan import make_plan
    from finetune.plan.reasons import why
    from finetune.recipe.load import check_recipe, load_recipe

    loaded = load_recipe(recipe, overrides)
    check_recipe(loaded)
    check_data(loaded)
    made = make_plan(loaded, runs)
    at = f" at {made.base.revision}" if made.base.revision else ""
    click.echo(f"{made.recipe.name}: base {made.base.name}{at}, {made.recipe.model.load_in}, seed {made.recipe.seed}")
    click.echo(where_runs_lie(runs))
    for stage in made.stages:
        reads = f", reads {', '.join(stage.inputs)}" if stage.inputs else ""
        click.echo(f"{stage.name} ({stage.kind}{reads}): {stage.state}")
        for reason in why(made, stage):
            click.echo(f"  why         {reason}")
        click.echo(f"  folder      {stage.folder if stage.state != 'started' else stage.part}")
        if stage.state != "done":
            for line in _needs(stage.estimate):
                click.echo(f"  {line}")
    counts = Counter(stage.state for stage in made.stages)
    if counts["done"] < len(made.stages):
        click.echo("memory: what a stage puts on the device; Python and its libraries come on top (docs/memory.md)")
    click.echo(", ".join(f"{counts[state]} {state}" for state in ("done", "started", "to do") if counts[state]))


def _needs(need: Estimate) -> list[str]:
    """Memory and disk of a stage, the parts that it has."""
    from finetune.plan.estimate import GIB

    parts = {
        "weights": need.weights,
        "adapter, gradient": need.adapter,
        "frozen adapters": need.frozen,
        "optimiser": need.optimizer,
        "activations": need.activations,
        "head": need.head,
    }
    words = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    if need.cache:
        learning = need.activations + need.head
        words += f"; writing answers {need.cache / GIB:.2f}" + (", before it learns" if learning else "")
    lines = [f"trains      {need.trainable:,} parameters"] if need.trainable else []
    lines.append(f"memory      up to {need.memory / GIB:.2f} GiB: {words}")
    lines.append(f"disk        up to {need.disk / GIB:.2f} GiB")
    return lines
