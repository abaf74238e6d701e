"""`finetune reward`: run a recipe's reward stages."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


@click.command()
@recipe_options
def reward(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Train a reward model on comparisons: an adapter with a scalar head.

    Runs the recipe's stages of kind reward, and whatever they read that is not done. What is done is not repeated;
    what was interrupted goes on from its last checkpoint.

    \b
    Example:
      finetune reward recipe.yaml
    """
    from finetune.cli.walk import walk

    walk(recipe, overrides, runs, kinds={"reward"})
