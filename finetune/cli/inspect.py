"""`finetune inspect`: the tokens of a stage's rows, trained or not, exactly as training will see them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.options import recipe_options
from finetune.cli.painting import head, legend, painted
from finetune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from finetune.data.prepare import PreparedSft
    from finetune.data.prepare_preference import PreparedComparisons
    from finetune.data.report import Lengths
    from finetune.data.tokenizer import Tokenizer
    from finetune.recipe.learning_stages import PreferenceStage, SftStage
    from finetune.recipe.load import LoadedRecipe

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

    Of a reward or dpo stage, a row is a comparison: its prompt, then its answers, best first, each with what is scored.
    Also counts what is left out and why, and the lengths of the rows. With --all and with --json, which give the rows
    in the order of the files, the ones that are left out appear too, whole. Needs the base's config and tokenizer,
    not its weights.

    \b
    Example:
      finetune inspect recipe.yaml -n 5
      finetune inspect recipe.yaml --stage sft --json --all > rows.jsonl

    \b
    Fields of --json:
      sft          row, input_ids, trained, dropped
      reward, dpo  row, answers (each input_ids, trained), dropped, margin, rating, desirable
    """
    from finetune.recipe.learning_stages import SftStage
    from finetune.recipe.load import load_recipe

    # Not check_recipe: it asks for the base's weights too, which nobody needs to look at data.
    loaded = load_recipe(recipe, overrides)
    name, stage = _choose(loaded, stage_name)

    def say(line: str) -> None:
        if not as_json:
            click.echo(line)

    say(f"stage {name}")
    prepared, tokenizer = _prepare(loaded, stage, runs, say)
    total = len(prepared.dropped)
    rows: Sequence[int] = range(total if show_all else min(count, total))
    if as_json:
        for row in rows:
            click.echo(json.dumps(_as_json(prepared, row)))
        return
    for line in _histogram(prepared.report.lengths, "rows" if isinstance(stage, SftStage) else "answers"):
        say(line)
    if not show_all:  # what is trained on is what one wants to see; where nothing is, the rows that are left out
        used = [row for row, why in enumerate(prepared.dropped) if why is None]
        rows = used[:count] if used else rows
    _show(prepared, tokenizer, rows)


def _choose(loaded: LoadedRecipe, name: str | None) -> tuple[str, SftStage | PreferenceStage]:
    from finetune.recipe.learning_stages import PreferenceStage, SftStage

    stages = {
        key: stage for key, stage in loaded.recipe.stages.items() if isinstance(stage, (SftStage, PreferenceStage))
    }
    if name is None:
        if not stages:
            raise InputError(f"{loaded.path} has no stage with data to inspect")
        name = next(iter(stages))
    if name not in stages:
        raise InputError(f"{loaded.path} has no stage '{name}' with data; it has {', '.join(stages) or 'none'}")
    return name, stages[name]


def _prepare(
    loaded: LoadedRecipe, stage: SftStage | PreferenceStage, runs: Path, say: Callable[[str], None]
) -> tuple[PreparedSft | PreparedComparisons, Tokenizer]:
    """The data by the very function that training calls, only that nothing is refused."""
    from finetune.data.prepare import prepare_sft
    from finetune.data.prepare_preference import prepare_comparisons
    from finetune.data.tokenizer import Tokenizer
    from finetune.families.detect import resolve
    from finetune.plan.base_files import locate_base
    from finetune.recipe.learning_stages import DpoStage, RewardStage, SftStage

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
    cache = runs / ".cache" if runs.is_dir() else None  # looking at data makes no folder for runs
    if isinstance(stage, SftStage):
        rows = prepare_sft(
            stage,
            model=model,
            seed=loaded.recipe.seed,
            locate=loaded.locate,
            stage_outputs={},
            family=resolved.family,
            tokenizer=tokenizer,
            cache=cache,
            say=say,
            refuse=False,
        )
        return rows, tokenizer
    comparisons = prepare_comparisons(
        stage,
        slices=stage.slices if isinstance(stage, RewardStage) else (),
        judged=isinstance(stage, DpoStage) and stage.loss == "kto",
        model=model,
        seed=loaded.recipe.seed,
        locate=loaded.locate,
        stage_outputs={},
        family=resolved.family,
        tokenizer=tokenizer,
        cache=cache,
        say=say,
        refuse=False,
    )
    return comparisons, tokenizer


def _as_json(prepared: PreparedSft | PreparedComparisons, row: int) -> dict[str, object]:
    from finetune.cli.inspect_comparisons import comparison_json
    from finetune.data.prepare_preference import PreparedComparisons

    if isinstance(prepared, PreparedComparisons):
        return comparison_json(prepared, row)
    ids, trained = prepared.rows.row(row)
    return {
        "row": int(prepared.rows.origin[row]),
        "input_ids": ids.tolist(),
        "trained": trained.tolist(),
        "dropped": prepared.dropped[row],
    }


def _show(prepared: PreparedSft | PreparedComparisons, tokenizer: Tokenizer, rows: Sequence[int]) -> None:
    from rich.console import Console

    from finetune.cli.inspect_comparisons import show_comparison
    from finetune.data.prepare_preference import PreparedComparisons

    console = Console(highlight=False)
    colour = console.color_system is not None and not console.no_color
    if rows:
        console.print(legend(colour))
    for row in rows:
        if isinstance(prepared, PreparedComparisons):
            show_comparison(prepared, row, tokenizer, console, colour)
        else:
            _show_row(prepared, row, tokenizer, console, colour)


def _show_row(prepared: PreparedSft, row: int, tokenizer: Tokenizer, console: Console, colour: bool) -> None:
    ids, trained = prepared.rows.row(row)
    number = int(prepared.rows.origin[row])
    about = f"{prepared.origins[number]}: {len(ids):,} tokens, {int(trained.sum()):,} trained"
    console.print(head(number, about, prepared.dropped[row], colour), soft_wrap=True)
    console.print(painted(ids.tolist(), trained.tolist(), tokenizer, colour), soft_wrap=True)


def _histogram(lengths: Lengths, noun: str) -> Iterator[str]:
    """What is trained on by length, one line a bin."""
    most = max(lengths.counts)
    if not most:
        return
    yield f"training {noun} by length in tokens:"
    for (low, high), count in zip(pairwise(lengths.edges), lengths.counts, strict=True):
        if any(c for edge, c in zip(lengths.edges, lengths.counts, strict=False) if edge <= low):
            yield f"  {max(low, 1):>7,} - {high - 1:<7,} {'█' * round(_BAR * count / most)} {count:,}"
