"""Whole pages: one run, or a recipe's finished stages, as one HTML file that asks for nothing outside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune.reports import results, sections
from finetune.reports.charts import charts
from finetune.reports.evaluated import evaluations
from finetune.reports.lineage_picture import ancestors, lineage
from finetune.reports.page_style import PAGE_STYLE
from finetune.reports.pieces import STYLE, Html, facts, join, table, text
from finetune.reports.read import FinishedRun
from finetune.reports.sections import Section
from finetune.reports.words import ONLINE, figures, kind_in_words, lasted, result

_EMPTY_ICON = "data:,"
"""Without it a browser asks the server of a page for /favicon.ico."""


def run_page(run: FinishedRun) -> str:
    """The report of one finished run."""
    manifests = ancestors(run.folder, run.manifest)
    parts = [
        Section("summary", "Summary", join([sections.tiles(run), sections.what(run)])),
        Section("lineage", "Where it comes from", lineage(manifests, marked=run.fingerprint)),
        *stage_sections(run),
        Section("data", "Data", sections.data(run)),
        Section("environment", "Environment", sections.environment(run)),
        Section("reproduce", "How to make it again", sections.reproduce([run])),
    ]
    return page(run.name, join([sections.lead(run), sections.notes(run)]), parts)


def recipe_page(name: str, runs: Sequence[FinishedRun], unfinished: Mapping[str, str]) -> str:
    """The report of a recipe. runs: its finished stages in order, one at least; unfinished: others' kinds, by name."""
    seconds = sum(run.manifest.get("seconds") or 0.0 for run in runs)
    base = (runs[0].manifest.get("base") or {}).get("name", "an unknown base")
    left = f" Not finished: {', '.join(unfinished)}." if unfinished else ""
    first = Html(
        f'<p class="lead">{len(runs):,} finished {"stage" if len(runs) == 1 else "stages"} on {text(base)}, '
        f"{text(lasted(seconds))} of work.{text(left)}</p><ul>{_ends(runs)}</ul>"
    )
    summary = table(
        ("stage", "kind", "result", "time"),
        [
            (
                Html(f'<a href="#{anchor(run.stage)}">{text(run.stage)}</a>'),
                kind_in_words(run.manifest),
                Html("<br>".join(text(f"{figure.name} {figure.whole}") for figure in figures(run.manifest)[:2])),
                lasted(run.manifest.get("seconds") or 0.0),
            )
            for run in runs
        ],
        caption="Stages in the recipe's order",
        numeric=(3,),
    )
    parts = [
        Section("summary", "Summary", summary),
        Section("lineage", "Where each comes from", lineage([run.manifest for run in runs])),
    ]
    for run in runs:
        prefix = anchor(run.stage)
        head = join([sections.lead(run), sections.notes(run), sections.tiles(run)])
        parts.append(Section(prefix, run.stage, head))
        parts += stage_sections(run, prefix=f"{prefix}-", level=3)
        parts.append(Section(f"{prefix}-data", "Data", sections.data(run), 3))
        parts.append(Section(f"{prefix}-facts", "Facts", sections.what(run), 3))
    parts.append(Section("environment", "Environment", _environments(runs)))
    parts.append(Section("reproduce", "How to make it again", sections.reproduce(runs)))
    return page(name, first, parts)


def stage_sections(run: FinishedRun, *, prefix: str = "", level: int = 2) -> list[Section]:
    """What there is to see of a stage's work: answers, curves, what its kind has of its own, evaluations."""
    main, more = charts(run.log, run.manifest)
    found = [("answers", "Answers before and after", results.answers(run)), ("curves", "Curves", _curves(main, more))]
    if run.kind == "reward":
        found.append(("pairs", "On held-out pairs", results.pairs(run)))
    elif run.kind == "reject":
        found.append(("best", "Best of k", results.best_of(run)))
        found.append(("kept", "What was kept", results.kept(run)))
    elif run.pictures:
        found.append(("pictures", "Pictures", Html(f'<div class="grid">{results.pictures(run)}</div>')))
    if run.kind in ONLINE and run.samples:
        found.append(("samples", "Held-out prompts, first and last answers", results.policy_samples(run)))
    found.append(("evaluations", "Evaluations", evaluations(run)))
    return [Section(f"{prefix}{id}", title, body, level) for id, title, body in found if body]


def page(title: str, first: Html, parts: Sequence[Section]) -> str:
    """A whole HTML document: heading, first words, contents, sections."""
    contents = "".join(
        f'<li class="level-{part.level}"><a href="#{part.id}">{text(part.title)}</a></li>' for part in parts
    )
    body = "".join(
        f'<section aria-labelledby="{part.id}"><h{part.level} id="{part.id}">{text(part.title)}</h{part.level}>'
        f"{part.body}</section>"
        for part in parts
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="{_EMPTY_ICON}">\n<style>\n{STYLE}{PAGE_STYLE}</style>\n</head>\n<body class="ft">\n'
        f'<a class="skip" href="#main">To the content</a>\n<div class="page">\n'
        f"<header><h1>{text(title)}</h1>{first}</header>\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f'<main id="main">{body}</main>\n</div>\n</body>\n</html>\n'
    )


def anchor(stage: str) -> str:
    """A stage's id on the page."""
    return "stage-" + "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in stage)


def _curves(main: Html, more: Html) -> Html:
    if not main and not more:
        return Html("")
    rest = (
        f'<details><summary>More of what was logged</summary><div class="grid">{more}</div></details>' if more else ""
    )
    return Html(f'<div class="grid">{main}</div>{rest}')


def _ends(runs: Sequence[FinishedRun]) -> str:
    """The results of the stages that no other one has read: what the chain was for."""
    read = {fingerprint for run in runs for fingerprint in (run.manifest.get("inputs") or {}).values()}
    ends = [run for run in runs if run.fingerprint not in read]
    return "".join(f"<li><strong>{text(run.stage)}</strong>: {text(result(run.manifest))}</li>" for run in ends)


def _environments(runs: Sequence[FinishedRun]) -> Html:
    """The environment, once where it was the same for all."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(str(sections.environment(run)), []).append(run.stage)
    if len(found) == 1:
        return Html(next(iter(found)))
    return join(Html(f"{facts([('stages', ', '.join(names))])}{body}") for body, names in found.items())
