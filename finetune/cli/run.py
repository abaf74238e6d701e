"""`finetune run`: run all stages of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


@click.command()
@recipe_options
def run(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Run every stage of a recipe, in order.

    What is done is not repeated; what was interrupted goes on from its last checkpoint.

    \b
    Example:
      finetune run recipe.yaml
    """
    from finetune.cli.walk import walk

    walk(recipe, overrides, runs, kinds=None)
