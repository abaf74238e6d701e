"""`finetune report`: a run, a recipe's runs, or two of them beside each other, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli.options import runs_option, set_option
from finetune.errors import InputError

if TYPE_CHECKING:
    from finetune.plan.plan import Plan


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Another run or recipe: show what differs.")
@click.option("--out", type=click.Path(path_type=Path), help="The file. Default: beside the run's folder.")
@click.option("--stage", "stage_name", metavar="NAME", help="One stage, where RUN is a recipe.")
@click.option("--against-stage", metavar="NAME", help="The stage of --against. Default: the same name.")
@click.option("--no-answers", is_flag=True, help="Load no model: show only answers that are there already.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Ask these, not the rows that were held out.")
@click.option("--base", metavar="FOLDER|ID", help="The base, if it is not where the run had it.")
@click.option("--open", "open_it", is_flag=True, help="Open the page in the browser.")
@set_option
@runs_option
def report(
    run: Path,
    against: Path | None,
    out: Path | None,
    stage_name: str | None,
    against_stage: str | None,
    no_answers: bool,
    prompts: Path | None,
    base: str | None,
    open_it: bool,
    overrides: tuple[str, ...],
    runs: Path,
) -> None:
    """Make a page of a finished RUN (its folder), or of all finished stages of a recipe: results, lineage, answers
    before and after, curves, data, and how to make it again. One HTML file that needs no network.

    Where a run has no answers yet, it is loaded and asked 12 of its held-out rows; the answers are kept in the run.

    \b
    Example:
      finetune report recipe.yaml
      finetune report runs/chat/sft-0123456789ab --out sft.html
      finetune report recipe.yaml --stage dpo --against recipe.yaml --against-stage ppo
    """
    if prompts is not None and no_answers:
        raise InputError("--prompts asks the run, --no-answers does not: give one of them")
    if prompts is not None and not prompts.is_file():
        raise InputError(f"--prompts: no such file: {prompts}")
    if against is None and against_stage is not None:
        raise InputError("--against-stage names a stage of --against: give that too")
    from finetune.evaluation.reported import Asking, both_with_answers, with_answers
    from finetune.reports.compare import comparison_page, run_names
    from finetune.reports.page import recipe_page, run_page
    from finetune.reports.place import open_page, write_page

    asking = None if no_answers else Asking(prompts, base, lambda line: click.echo(line, err=True))
    plan, folders = _chosen(run, stage_name, overrides, runs)
    if against is not None:
        _, others = _chosen(against, against_stage or stage_name, overrides if against == run else (), runs)
        pairs, alone = _pairs(folders, others, (run, against))
        place = _place(out, folders[0].with_name(_pair_name(pairs)))
        read = [both_with_answers(*pair, asking) for pair in pairs]
        names = run_names(*read[0]) if len(read) == 1 else (str(run), str(against))
        page = comparison_page(read, names, alone)
    elif plan is not None and stage_name is None:
        place = _place(out, folders[0].with_name("report.html"))
        unfinished = {stage.name: stage.kind for stage in plan.stages if stage.state != "done"}
        page = recipe_page(plan.recipe.name, [with_answers(folder, asking) for folder in folders], unfinished)
    else:
        place = _place(out, folders[0].with_name(f"report-{folders[0].name}.html"))
        page = run_page(with_answers(folders[0], asking))
    write_page(place, page)
    click.echo(f"{place}: {len(page.encode()) / 2**20:.2f} MiB")
    click.echo(place.resolve().as_uri())
    if open_it and not open_page(place):
        click.echo("no browser could be opened here: open that address in one", err=True)


def _chosen(
    given: Path, stage_name: str | None, overrides: Sequence[str], runs: Path
) -> tuple[Plan | None, list[Path]]:
    """The folders that are meant: a run's own, one stage's of a recipe, or all finished ones'. Raises InputError."""
    if given.name in ("", ".."):  # `.` and such have no name that a page could be named after
        given = given.resolve()
    if not given.is_file():
        from finetune.plan.manifest import read_manifest
        from finetune.reports.read import no_run

        if read_manifest(given) is None:
            raise InputError(no_run(given))
        return None, [given]
    from finetune.plan.plan import make_plan
    from finetune.recipe.load import load_recipe

    plan = make_plan(load_recipe(given, overrides), runs)
    names = [stage.name for stage in plan.stages]
    if stage_name is not None and stage_name not in names:
        raise InputError(f"{given} has no stage '{stage_name}'; it has {', '.join(names)}")
    done = [stage for stage in plan.stages if stage.state == "done" and stage_name in (None, stage.name)]
    if not done:
        what = f"stage {stage_name} of {given}" if stage_name else f"no stage of {given}"
        raise InputError(f"{what} is {'not ' if stage_name else ''}finished below {runs}: `finetune run {given}` first")
    return plan, [stage.folder for stage in done]


def _pairs(
    folders: list[Path], others: list[Path], given: tuple[Path, Path]
) -> tuple[list[tuple[Path, Path]], dict[str, str]]:
    """What is compared with what: two runs, or the stages of one name; and stages of one side alone, with its name."""
    if len(folders) == len(others) == 1:
        return [(folders[0], others[0])], {}
    left, right = ({_stage(folder): folder for folder in side} for side in (folders, others))
    pairs = [(left[name], right[name]) for name in left if name in right]
    if not pairs:
        raise InputError(
            f"{given[0]} and {given[1]} have no finished stage of the same name: say which with --stage and "
            "--against-stage"
        )
    alone = {name: str(given[0]) for name in left if name not in right}
    return pairs, alone | {name: str(given[1]) for name in right if name not in left}


def _stage(folder: Path) -> str:
    from finetune.plan.manifest import read_manifest

    return str((read_manifest(folder) or {}).get("stage") or folder.name)


def _pair_name(pairs: Sequence[tuple[Path, Path]]) -> str:
    first, second = pairs[0]
    if len(pairs) > 1:
        return f"report-against-{second.parent.name}.html"
    return f"report-{first.name}-against-{second.name}.html"


def _place(out: Path | None, usual: Path) -> Path:
    """Where the page goes, before anybody waits for it. Raises InputError."""
    from finetune.reports.place import check_place

    return check_place(usual if out is None else out.expanduser())
