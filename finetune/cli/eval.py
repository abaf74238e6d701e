"""`finetune eval`: a finished run, measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from finetune.cli.given_runs import looked_in
from finetune.cli.options import runs_option, set_option
from finetune.errors import InputError
from finetune.plan.evaluations import TASKS
from finetune.recipe.data_settings import DATA_FORMATS

_SECTIONS = {
    "What is measured": ("task", "data", "data_format", "limit", "slices", "stage_name", "base", "overrides", "runs"),
    "How answers are drawn": ("samples", "temperature", "top_p", "max_new_tokens", "seed"),
    "Comparing": ("against", "judge", "judge_model", "tie"),
    "gsm8k and lm_eval": ("shots", "examples", "lm_tasks", "lm_path", "lm_chat"),
    "Output": ("as_json", "out"),
}


class _Sections(click.Command):
    """Its help lists the options by what they are for."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        left = {option.name: record for option in options if (record := option.get_help_record(ctx))}
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([left.pop(name) for name in names])
        with formatter.section("Other"):
            formatter.write_dl(list(left.values()))


@click.command(cls=_Sections)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(TASKS), help="Default: score of a reward model, loss of any other run.")
@click.option("--data", type=click.Path(path_type=Path), help="File to measure on. See below who can do without.")
@click.option("--format", "data_format", type=click.Choice(DATA_FORMATS), default="auto", help="What a row looks like.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many rows.")
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="score: report accuracy by a column, too.")
@click.option(
    "--stage", "stage_name", metavar="NAME", help="Which stage, where RUN is a recipe. Default: the only one done."
)
@click.option("--base", metavar="FOLDER|ID", help="The base, if it is not where the run had it.")
@set_option
@runs_option
@click.option("--samples", type=click.IntRange(1), metavar="N", help="reward: answers to each prompt. Default 1.")
@click.option("--temperature", type=click.FloatRange(0), metavar="T", help="0, the default: the likeliest word always.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help="Draw from this share only.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), metavar="N", help="Default 256; 1280 for ifeval, 512 for gsm8k."
)
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Of the draws. Default 0.")
@click.option("--against", metavar="base|RUN|STAGE", help="loss, reward, win_rate: the other side.")
@click.option("--judge", metavar="RUN|STAGE|URL", help="A reward model's run, or an OpenAI-compatible address.")
@click.option("--judge-model", metavar="NAME", help="The model's name at that address.")
@click.option("--tie", type=click.FloatRange(0), default=0.0, metavar="MARGIN", help="win_rate: scores so close tie.")
@click.option("--shots", type=click.IntRange(0), default=0, metavar="N", help="Solved examples before each question.")
@click.option("--examples", type=click.Path(path_type=Path), help="gsm8k: where they come from, the train split.")
@click.option("--lm-task", "lm_tasks", multiple=True, metavar="NAME", help="lm_eval: one of the harness' tasks.")
@click.option("--lm-path", type=click.Path(path_type=Path), help="lm_eval: a folder of task files of your own.")
@click.option("--lm-chat", is_flag=True, help="lm_eval: ask in the run's chat template.")
@click.option("--json", "as_json", is_flag=True, help="The results as one JSON object.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a JSON object for each row.")
def evaluate(
    run: Path,
    task: str | None,
    data: Path | None,
    data_format: Any,
    limit: int | None,
    slices: tuple[str, ...],
    stage_name: str | None,
    base: str | None,
    overrides: tuple[str, ...],
    runs: Path,
    against: str | None,
    judge: str | None,
    judge_model: str | None,
    tie: float,
    shots: int,
    examples: Path | None,
    lm_tasks: tuple[str, ...],
    lm_path: Path | None,
    lm_chat: bool,
    as_json: bool,
    out: Path | None,
    **drawn: float | int | None,
) -> None:
    """Measure a finished RUN (its folder, or a recipe with --stage), and keep what was found in the run.

    \b
    loss       nats per token of the answers in --data
    score      a reward model's scores of --data; of comparisons the accuracy
    reward     what a reward model (--judge) thinks of the run's answers
    win_rate   how often the run answers better than another (--against, --judge)
    ifeval     instructions a program can check, in --data
    gsm8k      grade-school mathematics, in --data
    answers    the answers of the base, the start and the run, to read
    lm_eval    tasks of EleutherAI's lm-evaluation-harness (an extra: lm-eval)

    reward, win_rate and answers ask what the run's own stage held out, where no --data is given. A language model as
    the judge is sent every prompt and both answers, in both orders; its key is read from FINETUNE_JUDGE_KEY or
    OPENAI_API_KEY. Figures come with 95 % intervals. What is interrupted goes on when the same command is given.

    \b
    Example:
      finetune eval runs/chat/helpful-0123456789ab --data pairs.jsonl
      finetune eval recipe.yaml --stage dpo --data held_out.jsonl --against sft
      finetune eval recipe.yaml --stage dpo --task win_rate --against sft --judge helpful
      finetune eval RUN --task win_rate --against base \\
          --judge http://127.0.0.1:8000/v1 --judge-model my-judge
      finetune eval RUN --task ifeval --data ifeval.jsonl --json

    \b
    Fields of --out:
      score      row (from 0), line (JSONL files), score or scores
      loss       row, line, loss (nats per token), tokens; theirs
      others     prompt, the answers by who gave them, and what was found
    """
    from finetune.plan.manifest import read_manifest

    if data is not None and not data.exists():
        raise InputError(f"--data: no such file or folder: {data}")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out: no such folder: {out.parent}")
    if out is not None and data is not None and out.exists() and out.samefile(data):
        raise InputError(f"--out: {out} is the data; give the scores a file of their own")
    folders = _stages(run, overrides, runs) if run.is_file() else {}
    folder = _of_recipe(run, stage_name, folders, runs) if folders else run
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(_not_a_run(run))
    if slices and manifest["kind"] != "reward":
        raise InputError(f"--slice belongs to reward models; {folder} is a {manifest['kind']} run")
    task = task or ("score" if manifest["kind"] == "reward" else "loss")

    from finetune.durable import rename_file
    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from finetune.cli.eval_shown import plain, shown
    from finetune.evaluation import tasks
    from finetune.evaluation.judge import RemoteJudge
    from finetune.reports.words import counted

    def named(value: str) -> Path:
        return folders.get(value) or Path(value)

    judge_given: Path | RemoteJudge | None = None
    if judge is not None and "://" in judge:
        if judge_model is None:
            raise InputError("--judge-model: which model at that address? Its own list is at …/v1/models")
        judge_given = RemoteJudge(judge, judge_model)
    elif judge_model is not None:
        raise InputError("--judge-model belongs to a --judge that is an address")
    elif judge is not None:
        judge_given = named(judge)
    changes = {name: value for name, value in drawn.items() if value is not None}
    asks = task in ("reward", "win_rate", "ifeval", "gsm8k", "answers")
    found = tasks.evaluate(
        folder,
        task,
        data=data,
        against=None if against is None else "base" if against == "base" else named(against),
        judge=judge_given,
        base=base,
        limit=limit,
        answering=tasks.usual_answering(task, **changes) if changes or asks else None,
        data_format=data_format,
        slices=slices,
        tie=tie,
        shots=shots,
        examples=examples,
        lm_tasks=lm_tasks,
        lm_path=lm_path,
        lm_chat=lm_chat,
        say=lambda line: click.echo(line, err=as_json),
    )
    if out is not None:
        part = out.with_name(out.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in found.rows), encoding="utf-8")
        rename_file(part, out)
    if as_json:
        about = {"run": str(folder), "task": task, "data": None if data is None else str(data)}
        click.echo(json.dumps({**about, **plain(found.results)}, indent=2))
        return
    for line in shown(found):
        click.echo(line)
    if out is not None:
        click.echo(f"{counted(len(found.rows), 'row')} in {out}")


def _stages(recipe: Path, overrides: tuple[str, ...], runs: Path) -> dict[str, Path]:
    """Folders of a recipe's stages, by name. Raises InputError."""
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    return {stage.name: stage.folder for stage in make_plan(load_recipe(recipe, overrides), runs).stages}


def _of_recipe(recipe: Path, name: str | None, folders: Mapping[str, Path], runs: Path) -> Path:
    """The folder of a recipe's finished stage. Raises InputError."""
    from finetune.plan.manifest import FILE

    done = [stage for stage, folder in folders.items() if (folder / FILE).is_file()]
    if name is None and len(done) != 1:
        which = ", ".join(done) if done else f"none{looked_in(runs)}"
        raise InputError(f"{recipe}: say which stage with --stage; done are {which}")
    name = name or done[0]
    if name not in folders:
        raise InputError(f"{recipe} has no stage '{name}'; it has {', '.join(folders)}")
    if name not in done:
        raise InputError(f"stage {name} of {recipe} is not finished: `finetune run {recipe}` first{looked_in(runs)}")
    return folders[name]


def _not_a_run(run: Path) -> str:
    if not run.exists():
        return f"no such run or recipe: {run}"
    if run.name.endswith(".part"):
        return f"{run} is not finished: run its recipe again, it goes on from the last checkpoint"
    return f"{run} has no manifest.json: not the folder of a finished run"
