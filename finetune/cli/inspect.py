"""`finetune inspect`: the tokens of a stage's rows, trained or not, exactly as training will see them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.options import recipe_options
from finetune.cli.painting import answer_head, head, legend, painted
from finetune.shapes import RATINGS

if TYPE_CHECKING:
    from finetune.data.look import Prepared
    from finetune.data.prepare_preference import PreparedComparisons
    from finetune.data.tokenizer import Tokenizer

_BAR = 40


@click.command()
@recipe_options
@click.option("--stage", "stage_name", metavar="NAME", help="Stage to look at. Default: the first one with data.")
@click.option("-n", "count", type=click.IntRange(min=0), default=3, show_default=True, help="Rows to show.")
@click.option("--all", "show_all", is_flag=True, help="Show all rows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row: its tokens, trained or not.")
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

    Of a reward or dpo stage, a row is a comparison: its prompt, then its answers, best first, each with what is scored;
    of a stage that samples, a prompt. Rows that a finished stage wrote are looked at like a file's.
    Also counts what is left out and why, and the lengths of the rows. With --all and with --json, which give the rows
    in the order of the files, the ones that are left out appear too, whole. Needs the base's config and tokenizer,
    not its weights.

    \b
    Example:
      finetune inspect recipe.yaml -n 5
      finetune inspect recipe.yaml --stage sft --json --all > rows.jsonl

    \b
    Fields of --json:
      sft          row, input_ids, trained, dropped; so do stages that sample
      reward, dpo  row, answers (each input_ids, trained), dropped, margin, rating, desirable
    """
    from finetune.data.look import choose_stage, count_rows, finished_inputs, lengths_of, prepare_stage, rows_to_show
    from finetune.recipe.learning_stages import PreferenceStage
    from finetune.recipe.load import load_recipe

    # Not check_recipe: it asks for the base's weights too, which nobody needs to look at data.
    loaded = load_recipe(recipe, overrides)
    name, stage = choose_stage(loaded, stage_name)

    def say(line: str) -> None:
        if not as_json:
            click.echo(line)

    say(f"stage {name}")
    prepared, tokenizer = prepare_stage(
        loaded,
        stage,
        stage_outputs=finished_inputs(loaded, stage, runs),
        cache=runs / ".cache" if runs.is_dir() else None,  # looking at data makes no folder for runs
        say=say,
    )
    total = count_rows(prepared)
    if as_json:
        for row in range(total if show_all else min(count, total)):
            click.echo(json.dumps(_as_json(prepared, row)))
        return
    for line in _histogram(lengths_of(prepared), "answers" if isinstance(stage, PreferenceStage) else "rows"):
        say(line)
    _show(prepared, tokenizer, range(total) if show_all else rows_to_show(prepared, count))


def _as_json(prepared: Prepared, row: int) -> dict[str, object]:
    from finetune.data.look import look_at
    from finetune.data.prepare_preference import PreparedComparisons

    if isinstance(prepared, PreparedComparisons):
        return _comparison_json(prepared, row)
    found = look_at(prepared, row)
    (part,) = found.parts
    return {"row": found.number, "input_ids": part.ids, "trained": part.trained, "dropped": found.left_out}


def _comparison_json(prepared: PreparedComparisons, group: int) -> dict[str, object]:
    """One comparison; answers best first. margin, rating, desirable: null where the row has none."""
    found = prepared.comparisons
    answers = [found.rows.row(row) for row in found.group(group)]
    margin, rating, desirable = float(found.margins[group]), int(found.ratings[group]), int(found.desirable[group])
    return {
        "row": found.origin_of(group),
        "answers": [{"input_ids": ids.tolist(), "trained": trained.tolist()} for ids, trained in answers],
        "dropped": prepared.dropped[group],
        "margin": None if math.isnan(margin) else margin,
        "rating": RATINGS[rating] if rating >= 0 else None,
        "desirable": bool(desirable) if desirable >= 0 else None,
    }


def _show(prepared: Prepared, tokenizer: Tokenizer, rows: Sequence[int]) -> None:
    from rich.console import Console

    from finetune.data.look import look_at

    console = Console(highlight=False)
    colour = console.color_system is not None and not console.no_color
    if rows:
        console.print(legend(colour))
    for row in rows:
        found = look_at(prepared, row)
        console.print(head(found, colour), soft_wrap=True)
        for place, part in enumerate(found.parts):
            if place:
                console.print(answer_head(part, colour), soft_wrap=True)
            console.print(painted(part, tokenizer, colour), soft_wrap=True)


def _histogram(lengths: Sequence[tuple[int, int, int]], noun: str) -> Iterator[str]:
    """What is trained on by length, one line a bin."""
    if not lengths:
        return
    most = max(count for _, _, count in lengths)
    yield f"training {noun} by length in tokens:"
    for low, high, count in lengths:
        yield f"  {low:>7,} - {high:<7,} {'█' * round(_BAR * count / most)} {count:,}"
