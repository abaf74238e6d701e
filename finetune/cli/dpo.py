"""`finetune dpo`: run a recipe's dpo stages."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


@click.command()
@recipe_options
def dpo(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Learn from comparisons directly: DPO and its relatives (ipo, simpo, orpo, kto …).

    Runs the recipe's stages of kind dpo, and whatever they read that is not done. What is done is not repeated;
    what was interrupted goes on from its last checkpoint.

    \b
    Example:
      finetune dpo recipe.yaml
    """
    from finetune.cli.walk import walk

    walk(recipe, overrides, runs, kinds={"dpo"})
