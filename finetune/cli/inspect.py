"""`finetune inspect`: the tokens of a stage's rows, trained or not, exactly as training will see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.options import recipe_options
from finetune.errors import InputError

if TYPE_CHECKING:
    from rich.text import Text

    from finetune.data.prepare import PreparedSft
    from finetune.data.report import Lengths
    from finetune.data.tokenizer import Tokenizer
    from finetune.recipe.load import LoadedRecipe
    from finetune.recipe.schema import SftStage

SHOWN_TOKENS = 1200
"""A longer row is shown with its middle left out: about three screens."""
_BAR = 40


@click.command()
@recipe_options
@click.option("--stage", "stage_name", metavar="NAME", help="Stage to look at. Default: the first one of kind sft.")
@click.option("-n", "count", type=click.IntRange(min=0), default=3, show_default=True, help="Rows to show.")
@click.option("--all", "show_all", is_flag=True, help="Show all rows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row: row, input_ids, trained, dropped.")
def inspect(
    recipe: Path,
    overrides: tuple[str, ...],
    runs: Path,
    stage_name: str | None,
    count: int,
    show_all: bool,
    as_json: bool,
) -> None:
    """Show a stage's rows as tokens: trained ones in green, or in ⟦…⟧ where there is no colour.

    Also counts what is left out and why, and the lengths of the rows. With --all and with --json, which give the rows
    in the order of the files, the ones that are left out appear too, whole. Needs the base's config and tokenizer,
    not its weights.

    \b
    Example:
      finetune inspect recipe.yaml -n 5
      finetune inspect recipe.yaml --stage sft --json --all > rows.jsonl
    """
    from finetune.recipe.load import load_recipe

    # Not check_recipe: it asks for the base's weights too, which nobody needs to look at data.
    loaded = load_recipe(recipe, overrides)
    name, stage = _choose(loaded, stage_name)

    def say(line: str) -> None:
        if not as_json:
            click.echo(line)

    say(f"stage {name}")
    prepared, tokenizer = _prepare(loaded, stage, runs, say)
    rows: Sequence[int] = range(len(prepared.rows) if show_all else min(count, len(prepared.rows)))
    if as_json:
        for row in rows:
            ids, trained = prepared.rows.row(row)
            shown = {
                "row": int(prepared.rows.origin[row]),
                "input_ids": ids.tolist(),
                "trained": trained.tolist(),
                "dropped": prepared.dropped[row],
            }
            click.echo(json.dumps(shown))
        return
    for line in _histogram(prepared.report.lengths):
        say(line)
    if not show_all:  # what is trained on is what one wants to see; where nothing is, the rows that are left out
        used = [row for row, why in enumerate(prepared.dropped) if why is None]
        rows = used[:count] if used else rows
    _show(prepared, tokenizer, rows)


def _choose(loaded: LoadedRecipe, name: str | None) -> tuple[str, SftStage]:
    stages = {key: stage for key, stage in loaded.recipe.stages.items() if stage.kind == "sft"}
    if name is None:
        if not stages:
            raise InputError(f"{loaded.path} has no stage of kind sft to inspect")
        name = next(iter(stages))
    if name not in stages:
        raise InputError(f"{loaded.path} has no sft stage '{name}'; it has {', '.join(stages) or 'none'}")
    return name, stages[name]


def _prepare(
    loaded: LoadedRecipe, stage: SftStage, runs: Path, say: Callable[[str], None]
) -> tuple[PreparedSft, Tokenizer]:
    """The data by the very function that training calls, only that nothing is refused."""
    from finetune.data.prepare import prepare_sft
    from finetune.data.tokenizer import Tokenizer
    from finetune.families.detect import resolve
    from finetune.plan.base_files import locate_base

    model = loaded.recipe.model
    base = locate_base(model, loaded.folder, weights=False)
    tokenizer = Tokenizer.load(base.folder)
    resolved = resolve(
        base.config,
        tokenizer.special_tokens,
        model.template,
        base_name=base.name,
        base_chat_template=base.chat_template,
    )
    for line in resolved.said:
        say(line)
    prepared = prepare_sft(
        stage,
        model=model,
        seed=loaded.recipe.seed,
        locate=loaded.locate,
        stage_outputs={},
        family=resolved.family,
        tokenizer=tokenizer,
        cache=runs / ".cache" if runs.is_dir() else None,  # looking at data makes no folder for runs
        say=say,
        refuse=False,
    )
    return prepared, tokenizer


def _show(prepared: PreparedSft, tokenizer: Tokenizer, rows: Sequence[int]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    colour = console.color_system is not None and not console.no_color
    if rows:
        example = Text("trained", "bold green") if colour else Text("⟦trained⟧")
        console.print(Text("\n").append_text(example).append(" / not trained", "dim" if colour else ""))
    for row in rows:
        ids, trained = prepared.rows.row(row)
        why = prepared.dropped[row]
        number = int(prepared.rows.origin[row])
        head = Text(f"\nrow {number}", "bold").append(
            f"  {prepared.origins[number]}: {len(ids):,} tokens, {int(trained.sum()):,} trained", "not bold"
        )
        if why is not None:
            head.append(f"  LEFT OUT: {why}", "bold red" if colour else "")
        console.print(head, soft_wrap=True)
        console.print(painted(ids.tolist(), trained.tolist(), tokenizer, colour), soft_wrap=True)


def painted(ids: Sequence[int], trained: Sequence[int], tokenizer: Tokenizer, colour: bool) -> Text:
    """A row's text with its trained tokens in green, or in ⟦…⟧ without colour. Special tokens stand by their names."""
    from rich.text import Text

    shown = Text()
    special = set(tokenizer.special_tokens.values())
    hidden = range(0)
    if len(ids) > SHOWN_TOKENS:
        hidden = range(SHOWN_TOKENS // 2, len(ids) - SHOWN_TOKENS // 2)
    for begin, end in _runs(ids, trained, special, hidden):
        if begin in hidden:
            shown.append(f" … {end - begin:,} tokens … ", "dim italic" if colour else "")
            continue
        text = _visible(_text_of(ids[begin:end], tokenizer, ids[begin] in special))
        if not colour:
            opens = trained[begin] and (begin == 0 or not trained[begin - 1] or begin - 1 in hidden)
            closes = trained[begin] and (end == len(ids) or not trained[end] or end in hidden)
            shown.append(("⟦" if opens else "") + text + ("⟧" if closes else ""))
        else:
            bold = "bold " if ids[begin] in special else ""
            shown.append(text, f"{bold}green" if trained[begin] else f"{bold}dim")
    return shown


def _runs(ids: Sequence[int], trained: Sequence[int], special: set[int], hidden: range) -> Iterator[tuple[int, int]]:
    """(begin, end) of tokens that are shown as one piece of text: of like mask, all ordinary or one special."""
    edges = [0]
    for here in range(1, len(ids)):
        at_gap = len(hidden) > 0 and here in (hidden.start, hidden.stop)
        changes = trained[here] != trained[here - 1] or ids[here] in special or ids[here - 1] in special
        if at_gap or (changes and here not in hidden):
            edges.append(here)
    yield from pairwise([*edges, len(ids)] if len(ids) else [])


def _text_of(ids: Sequence[int], tokenizer: Tokenizer, special: bool) -> str:
    if special:
        return tokenizer.token_text(ids[0])
    text = tokenizer.decode(ids)
    # SentencePiece drops the space before the first word of what it decodes.
    lost = tokenizer.token_text(ids[0]).startswith(" ") and not text.startswith(" ")
    return f" {text}" if lost else text


def _visible(text: str) -> str:
    """Control characters by their codes: data must not steer the terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else f"\\x{ord(c):02x}" for c in text)


def _histogram(lengths: Lengths) -> Iterator[str]:
    """Training rows by length, one line a bin."""
    most = max(lengths.counts)
    if not most:
        return
    yield "training rows by length in tokens:"
    for (low, high), count in zip(pairwise(lengths.edges), lengths.counts, strict=True):
        if any(c for edge, c in zip(lengths.edges, lengths.counts, strict=False) if edge <= low):
            yield f"  {max(low, 1):>7,} - {high - 1:<7,} {'█' * round(_BAR * count / most)} {count:,}"
