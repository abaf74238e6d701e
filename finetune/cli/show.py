"""`finetune show`: the stages of a recipe and what came out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from finetune.cli.given_runs import where_runs_lie
from finetune.cli.options import recipe_options


@click.command()
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="One JSON list: name, kind, state, path, metrics of every stage.")
def show(recipe: Path, overrides: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Show every stage of a recipe with its state, folder and results.

    \b
    Example:
      finetune show recipe.yaml
      finetune show recipe.yaml --json
    """
    from finetune.cli.eval_shown import in_one_line
    from finetune.cli.figures import lines
    from finetune.plan.evaluations import read_evaluations
    from finetune.plan.manifest import read_manifest
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    stages: list[dict[str, Any]] = []
    for stage in make_plan(load_recipe(recipe, overrides), runs).stages:
        manifest = read_manifest(stage.folder)
        path = stage.part if stage.state == "started" else stage.folder
        metrics = manifest["metrics"] if manifest else None
        stages.append(
            {"name": stage.name, "kind": stage.kind, "state": stage.state, "path": str(path), "metrics": metrics}
        )
    if as_json:
        click.echo(json.dumps(stages, indent=2))
        return
    click.echo(where_runs_lie(runs))
    for entry in stages:
        click.echo(f"{entry['name']} ({entry['kind']}): {entry['state']}: {entry['path']}")
        if entry["metrics"]:
            for line in lines(entry["metrics"]):
                click.echo(f"  {line}")
        for evaluation in read_evaluations(Path(entry["path"])):
            click.echo(f"  {in_one_line(evaluation)}")
