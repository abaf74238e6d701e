"""`finetune check`: is the recipe right, and are the files there that it names?"""

from __future__ import annotations

import os
from pathlib import Path

import click

from finetune.cli.options import recipe_argument, set_option


@click.command()
@recipe_argument
@set_option
def check(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Check RECIPE and the files it names; tell everything that is wrong at once.

    Needs no network and loads no model: a base on the hub is not looked up. Exit code 2 when something is wrong.

    \b
    Example:
      finetune check recipe.yaml
      finetune check recipe.yaml --set stages.sft.train.epochs=1
    """
    from finetune.data.check_data import check_data
    from finetune.recipe.checks import data_sources
    from finetune.recipe.load import check_recipe, load_recipe

    loaded = load_recipe(recipe, overrides)
    check_recipe(loaded)
    check_data(loaded)
    model = loaded.recipe.model
    folder = loaded.locate(model.base)
    where = "" if folder.is_dir() else f" (hub id, not looked up; no folder of that name at {os.path.abspath(folder)})"
    click.echo(f"{recipe} is right")
    click.echo(f"  name    {loaded.recipe.name}")
    click.echo(f"  base    {model.base}{where}, loaded in {model.load_in}")
    counts: dict[str, int] = {}
    for key, _ in data_sources(loaded.recipe):
        counts[str(key[1])] = counts.get(str(key[1]), 0) + 1
    for label, (name, stage) in zip(["stages"] + [""] * len(counts), loaded.recipe.stages.items(), strict=False):
        sources = counts.get(name, 0)
        click.echo(f"  {label:<8}{name} ({stage.kind}), {sources} data source{'' if sources == 1 else 's'}")
