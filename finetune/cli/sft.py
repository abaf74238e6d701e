"""`finetune sft`: run a recipe's supervised fine-tuning stages."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


@click.command()
@recipe_options
def sft(recipe: Path, overrides: tuple[str, ...], runs: Path) -> None:
    """Fine-tune on conversations, prompts with answers, or text; writes a proven adapter.

    Runs the recipe's stages of kind sft, and whatever they read that is not done. What is done is not repeated; what
    was interrupted goes on from its last checkpoint.

    \b
    Example:
      finetune sft recipe.yaml
      finetune sft recipe.yaml --set stages.sft.train.epochs=1
    """
    from finetune.cli.walk import walk

    walk(recipe, overrides, runs, kinds={"sft"})
