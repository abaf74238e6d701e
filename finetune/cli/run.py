"""`finetune run`: run all stages of a recipe, or a part of them."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.cli.options import recipe_options


@click.command()
@recipe_options
@click.option("--until", metavar="STAGE", help="The last stage to run: it and all above it in the recipe.")
@click.option("--from", "begin", metavar="STAGE", help="The first stage to run; all above it have to be done.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and why. Nothing is written.")
def run(
    recipe: Path, overrides: tuple[str, ...], runs: Path, until: str | None, begin: str | None, dry_run: bool
) -> None:
    """Run every stage of a recipe, in order, and sum up what came out.

    What is done is not repeated; what was interrupted goes on from where it was. In a terminal the whole chain is shown
    while it runs. The summary is also kept as summary.md beside the stages' folders.

    \b
    Example:
      finetune run recipe.yaml
      finetune run recipe.yaml --until sft --dry-run
      finetune run recipe.yaml --from reward
    """
    from finetune.cli.walk import dry_walk, walk

    if dry_run:
        dry_walk(recipe, overrides, runs, until=until, begin=begin)
    else:
        walk(recipe, overrides, runs, kinds=None, until=until, begin=begin)
