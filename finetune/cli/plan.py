"""`finetune plan`: what a recipe would do, and what it would need."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


@click.command()
@recipe_options
def plan(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Show the stages in order: what is done, where each run lies, and the memory and disk it needs.

    Nothing is trained and no weight is loaded. The memory is an upper bound: every row max_length long.

    \b
    Example:
      finetune plan recipe.yaml
    """
    from finetune.plan.estimate import GIB
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import check_recipe, load_recipe

    loaded = load_recipe(recipe, overrides)
    check_recipe(loaded)
    made = make_plan(loaded, runs)
    at = f" at {made.base.revision}" if made.base.revision else ""
    click.echo(f"{made.recipe.name}: base {made.base.name}{at}, {made.recipe.model.load_in}, seed {made.recipe.seed}")
    for stage in made.stages:
        reads = f", reads {', '.join(stage.inputs)}" if stage.inputs else ""
        click.echo(f"{stage.name} ({stage.kind}{reads}): {stage.state}")
        click.echo(f"  folder      {stage.folder if stage.state != 'started' else stage.part}")
        need = stage.estimate
        click.echo(f"  trains      {need.trainable:,} parameters")
        click.echo(
            f"  memory      up to {need.memory / GIB:.2f} GiB: weights {need.weights / GIB:.2f}, adapter, gradient "
            f"{need.adapter / GIB:.2f}, optimiser {need.optimizer / GIB:.2f}, "
            f"activations {need.activations / GIB:.2f}, head {need.head / GIB:.2f}"
        )
        click.echo(f"  disk        up to {need.disk / GIB:.2f} GiB")
