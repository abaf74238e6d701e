"""`finetune eval`: a finished run on a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from finetune.cli.options import runs_option, set_option
from finetune.errors import InputError
from finetune.recipe.data_settings import DATA_FORMATS


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "data", type=click.Path(path_type=Path), required=True, help="File to measure on.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a JSON object for each row.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
@click.option(
    "--stage", "stage_name", metavar="NAME", help="Which stage, where RUN is a recipe. Default: the only one done."
)
@click.option("--base", metavar="FOLDER|ID", help="The base, if it is not where the run had it.")
@click.option("--format", "data_format", type=click.Choice(DATA_FORMATS), default="auto", help="What a row looks like.")
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="Report accuracy by a column, too.")
@set_option
@runs_option
def evaluate(
    run: Path,
    data: Path,
    out: Path | None,
    as_json: bool,
    stage_name: str | None,
    base: str | None,
    data_format: Any,
    slices: tuple[str, ...],
    overrides: tuple[str, ...],
    runs: Path,
) -> None:
    """Measure a finished RUN (its folder, or a recipe with --stage) on a file.

    A reward model scores prompts with answers: rows of prompt and completion, or of messages that end with the
    assistant's turn. Of comparisons it scores every answer, best first in the output, and tells the accuracy. Of an
    sft or dpo run the loss is measured, in nats per token of the answers.

    \b
    Example:
      finetune eval runs/chat/helpful-0123456789ab --data pairs.jsonl
      finetune eval recipe.yaml --stage helpful --data answers.jsonl --out scores.jsonl

    \b
    Fields of --out:
      reward     row (from 0), line (JSONL files), score or scores
      sft, dpo   row, line, loss (nats per token), tokens
    """
    from finetune.plan.manifest import read_manifest

    if not data.exists():
        raise InputError(f"--data: no such file or folder: {data}")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out: no such folder: {out.parent}")
    if out is not None and out.exists() and out.samefile(data):
        raise InputError(f"--out: {out} is the data; give the scores a file of their own")
    folder = _of_recipe(run, stage_name, overrides, runs) if run.is_file() else run
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(_not_a_run(run))
    if slices and manifest["kind"] != "reward":
        raise InputError(f"--slice belongs to reward models; {folder} is a {manifest['kind']} run")

    from finetune.durable import rename_file
    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from finetune.stages.score import evaluate as measure

    found = measure(
        folder,
        manifest,
        data,
        base=base,
        data_format=data_format,
        slices=slices,
        say=lambda line: click.echo(line, err=as_json),
    )
    if out is not None:
        part = out.with_name(out.name + ".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in found.lines), encoding="utf-8")
        rename_file(part, out)
    if as_json:
        click.echo(json.dumps({"run": str(folder), "data": str(data), **found.summary}, indent=2))
        return
    for line in _told(found.summary):
        click.echo(line)
    if out is not None:
        click.echo(f"{len(found.lines):,} rows in {out}")


def _of_recipe(recipe: Path, name: str | None, overrides: tuple[str, ...], runs: Path) -> Path:
    """The folder of a recipe's finished stage. Raises InputError."""
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    plan = make_plan(load_recipe(recipe, overrides), runs)
    names = [stage.name for stage in plan.stages]
    done = [stage.name for stage in plan.stages if stage.state == "done"]
    if name is None and len(done) != 1:
        raise InputError(f"{recipe}: say which stage with --stage; done are {', '.join(done) or 'none'}")
    name = name or done[0]
    if name not in names:
        raise InputError(f"{recipe} has no stage '{name}'; it has {', '.join(names)}")
    if name not in done:
        raise InputError(f"stage {name} of {recipe} is not finished: `finetune run {recipe}` first")
    return plan.stage(name).folder


def _not_a_run(run: Path) -> str:
    if not run.exists():
        return f"no such run or recipe: {run}"
    if run.name.endswith(".part"):
        return f"{run} is not finished: run its recipe again, it goes on from the last checkpoint"
    return f"{run} has no manifest.json: not the folder of a finished run"


def _told(summary: dict[str, Any]) -> list[str]:
    if "loss" in summary:
        many = "" if summary["perplexity"] is None else f", perplexity {summary['perplexity']:,.2f}"
        over = f"{summary['tokens']:,} tokens of {summary['rows']:,} rows"
        return [f"loss {summary['loss']:.4f} nats per token{many}, over {over}"]
    lines = [
        f"scores: mean {summary['mean']:.3f}, deviation {summary['deviation']:.3f}, from {summary['lowest']:.3f} to "
        f"{summary['highest']:.3f}, of {summary['answers']:,} answers in {summary['rows']:,} rows"
    ]
    if summary.get("alike"):
        lines.append(f"{summary['alike']:,} answers are like a better one of their comparison: not in the accuracy")
    if report := summary.get("report"):
        lines.append(f"{_accuracy(report)}, mean gap {report['mean_gap']:.2f}, log loss {report['log_loss']:.3f}")
        lines.append(
            f"calibration error {report['calibration']['ece']:.3f}, Brier {report['calibration']['brier']:.3f}"
        )
        correlation = report["length"]["pairs"]["spearman"]
        if correlation is not None:
            lines.append(f"rank correlation of gap and difference in length {correlation:+.2f}")
        for rating, found in report["by_rating"].items():
            lines.append(f"  {rating}: {_accuracy(found)}")
        for column, values in report["by_slice"].items():
            lines += [f"  {column} {value}: {_accuracy(found)}" for value, found in values.items()]
    return lines


def _accuracy(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    return f"accuracy {found['accuracy']:.3f} ({low:.3f} to {high:.3f}) over {found['pairs']:,} pairs"
