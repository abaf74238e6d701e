"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

recipe_argument = click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Change one value of the recipe, e.g. --set stages.sft.train.epochs=1. Can be given several times.",
)

runs_option = click.option(
    "--runs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder that runs are kept in.",
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """RECIPE, --set and --runs."""
    return recipe_argument(set_option(runs_option(command)))
