"""`finetune chat`: a run in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.given_runs import BASE, existing, named, stages_of
from finetune.cli.options import runs_option, set_option
from finetune.errors import InputError

if TYPE_CHECKING:
    from finetune.chat.talk import Talk


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--stage", metavar="NAME", help="Which stage, where RUN is a recipe. Default: the only one done.")
@click.option(
    "--against",
    metavar="base|RUN|STAGE",
    help="Answer beside it: the base, another run's folder, or another stage where RUN is a recipe.",
)
@click.option("--system", metavar="TEXT", help="System prompt. Default: the recipe's; '' for none.")
@click.option(
    "--temperature",
    type=click.FloatRange(0, 10),
    default=0.0,
    show_default=True,
    help="0 = the most probable words: the same question has the same answer. 1 = as the model has learnt.",
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Draw from this share of words.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="Of the draws, at a temperature above 0.",
)
@click.option(
    "--pairs",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("preferences.jsonl"),
    show_default=True,
    help="Where /prefer appends; nothing is written unasked.",
)
@click.option("--base", metavar="FOLDER|ID", help="The base, if it is not where the run had it.")
@set_option
@runs_option
def chat(
    run: Path,
    stage: str | None,
    against: str | None,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    pairs: Path,
    base: str | None,
    overrides: tuple[str, ...],
    runs: Path,
) -> None:
    """Talk to a finished RUN: its folder, a recipe (with --stage), or a merged folder.

    With --against two models answer side by side, the same conversation; below 80 columns one after the other. /help
    lists the commands: /save, /prefer, /again, /undo, /new, /system, /temperature, /quit. Where the input is no
    terminal, every line is a turn of one conversation (/new begins another), and the output is the answers alone.

    \b
    Example:
      finetune chat runs/chat/dpo-0123456789ab --against base
      finetune chat recipe.yaml --stage dpo --against sft --temperature 0.7
      echo "Who are you?" | finetune chat runs/chat/dpo-0123456789ab
    """
    names, found = _whom(run, stage, against, overrides, runs)

    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from rich.console import Console
    from rich.text import Text

    from finetune.chat.model import Answering, open_chat
    from finetune.chat.talk import Talk
    from finetune.chat.terminal import at_a_terminal, from_a_pipe

    model = open_chat(found, base=base, say=lambda line: click.echo(line, err=True))
    for name in names:
        if name not in model.names:
            raise InputError(f"--against {name}: {run} is a whole model and stands alone; talk to an adapter's run")
    settings = Answering(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    if system is not None and not model.family.is_chat:
        raise InputError(f"--system: the template {model.family.template} has no system prompt")
    own, model.system = model.system, None  # the conversation has it, so that /system can change it
    talk = Talk(names, model.family.is_chat, (own if system is None else system) or None, settings, pairs)
    if not sys.stdin.isatty():
        from_a_pipe(model, talk, sys.stdin, Console(file=sys.stdout, highlight=False, markup=False, emoji=False))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    for line in _greeting(talk):
        console.print(Text(line, "dim"), soft_wrap=True)
    at_a_terminal(model, talk, console)


def _whom(
    run: Path, stage: str | None, against: str | None, overrides: tuple[str, ...], runs: Path
) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The names that answer, left first, and the runs to open. Raises InputError."""
    is_recipe = run.is_file()
    if is_recipe:
        found = stages_of(run, [stage] if stage else [], overrides, runs)
        if len(found) > 1:
            done = ", ".join(named(found))
            raise InputError(f"{run}: say which stage with --stage; done are {done}")
    elif stage is not None:
        raise InputError(f"--stage belongs to a recipe; {run} is a folder")
    else:
        found = [existing(run)]
    if against is None:
        opened = named(found)
        return tuple(opened), opened
    if against == BASE:
        opened = named(found)
        return (*opened, BASE), opened
    if is_recipe and not Path(against).exists():
        found += stages_of(run, [against], overrides, runs)
    else:
        found.append(existing(Path(against)))
    opened = named(found)
    return tuple(opened), opened


def _greeting(talk: Talk) -> list[str]:
    warm = talk.settings.temperature
    drawn = f"temperature {warm:g}" if warm else "temperature 0, the most probable words"
    who = f"{' and '.join(talk.names)} side by side" if len(talk.names) > 1 else talk.names[0]
    lines = [f"{who}; {drawn}; at most {talk.settings.max_new_tokens:,} tokens an answer"]
    if talk.system:
        lines.append(f"system prompt: {talk.system}")
    if not talk.chat:
        lines.append("the template has no form for conversations: what you write is continued, each time anew")
    elif len(talk.names) > 1:
        lines.append(f"the conversation goes on with {talk.names[0]}'s answers; /prefer right takes the other's")
    return [*lines, "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves"]
