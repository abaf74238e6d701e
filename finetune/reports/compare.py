"""The page that puts two runs beside each other: what differed in the recipe, the data, the machine and the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.reports import differences, sections
from finetune.reports.charts import over_each_other
from finetune.reports.differences import Difference
from finetune.reports.page import anchor, page
from finetune.reports.pieces import Html, join, number, samples, table, text
from finetune.reports.read import FinishedRun
from finetune.reports.results import ANSWERS, clip, told
from finetune.reports.sections import Section
from finetune.reports.words import Figure, capital, counted, kind_in_short, kind_in_words, result

Pair = tuple[FinishedRun, FinishedRun]


def comparison_page(pairs: Sequence[Pair], names: tuple[str, str], alone: Mapping[str, str]) -> str:
    """The page of one pair of runs, or of the stages that two recipes have in common.

    names: what the two are called. alone: stages that only one has, and which one.
    """
    first, second = pairs[0]
    common = differences.recipe_differences(first.manifest, second.manifest)
    title = f"{names[0]} and {names[1]}"
    if len(pairs) == 1:
        parts = _sections(first, second, names, common)
        return page(title, join([_opening(first, second, names, common), _notes([first, second])]), parts)
    words = f"{len(pairs):,} stages are in both recipes."
    if alone:
        words += f" {', '.join(f'{stage} only in {where}' for stage, where in alone.items())}."
    parts = [Section("recipe", "What the recipes differ in", _differ(common, names, "All that is not of one stage"))]
    for first, second in pairs:
        prefix = anchor(first.stage)
        parts.append(Section(prefix, first.stage, _opening(first, second, names, [])))
        parts += _sections(first, second, names, [], prefix=f"{prefix}-", level=3)
    notes = _notes([run for pair in pairs for run in pair])
    return page(title, join([Html(f'<p class="lead">{text(words)}</p>'), notes]), parts)


def run_names(first: FinishedRun, second: FinishedRun) -> tuple[str, str]:
    """Names that tell two runs apart."""
    if first.name != second.name:
        return first.name, second.name
    if first.folder.name != second.folder.name:
        return first.folder.name, second.folder.name
    return str(first.folder), str(second.folder)


def _opening(first: FinishedRun, second: FinishedRun, names: tuple[str, str], common: Sequence[Difference]) -> Html:
    """The first words: how many settings differ, and what came out of each."""
    found = [*common, *differences.stage_differences(first, second)]
    count = len(differences.shared(found)[0]) if first.kind != second.kind else len(found)
    settings = {0: "no setting differs", 1: "one setting differs"}.get(count, f"{count} settings differ")
    if first.kind != second.kind:
        kinds = " and ".join(kind_in_short(run.manifest) for run in (first, second))
        settings = f"{kinds} are different kinds of stages; of what both can set, {settings}"
    rest = [
        f"the {what} {'differs' if found else 'is the same'}"
        for what, found in (
            ("data", differences.data_differences(first, second)),
            ("environment", differences.environment_differences(first, second)),
        )
    ]
    same = " They are the same run." if first.fingerprint == second.fingerprint else ""
    lines = "".join(
        f"<li><strong>{text(name)}</strong> ({text(kind_in_words(run.manifest))}): {text(result(run.manifest))}</li>"
        for name, run in zip(names, (first, second), strict=True)
    )
    return Html(f'<p class="lead">{text(capital(settings))}; {"; ".join(rest)}.{same}</p><ul>{lines}</ul>')


def _sections(
    first: FinishedRun,
    second: FinishedRun,
    names: tuple[str, str],
    common: Sequence[Difference],
    *,
    prefix: str = "",
    level: int = 2,
) -> list[Section]:
    settings = [*common, *differences.stage_differences(first, second)]
    logs = {name: (run.log, run.manifest) for name, run in zip(names, (first, second), strict=True)}
    drawn = over_each_other(logs) if len(logs) == 2 else Html("")
    answers = [
        {key: clip(value) for key, value in row.items()} for row in differences.answers_of_both(first, second, names)
    ]
    surroundings = differences.environment_differences(first, second)
    found = [
        ("results", "Results", _results(first, second, names)),
        ("settings", "What the settings differ in", _settings(settings, names, first.kind == second.kind)),
        ("answers", "Answers to the same prompts", _answers(answers, names)),
        ("curves", "Curves", Html(f'<div class="grid">{drawn}</div>') if drawn else Html("")),
        ("data", "Data", _differ(differences.data_differences(first, second), names, "Data")),
        ("environment", "Environment", _differ(surroundings, names, "Hardware and libraries")),
        ("facts", "The runs", _facts(first, second, names)),
    ]
    return [Section(f"{prefix}{id}", title, body, level) for id, title, body in found if body]


def _answers(rows: Sequence[Mapping[str, Any]], names: tuple[str, str]) -> Html:
    """How many answers are the same, and those that differ first."""
    if not rows:
        return Html("")
    differ = [row for row in rows if row[names[0]] != row[names[1]]]
    same = [row for row in rows if row[names[0]] == row[names[1]]]
    told = f"{counted(len(rows), 'prompt')}: {counted(len(differ), 'answer')} differ{'s' * (len(differ) == 1)}, "
    told += f"{len(same):,} {'is' if len(same) == 1 else 'are'} the same."
    return Html(f"<p>{told}</p>{samples([*differ, *same], limit=ANSWERS, neutral=True)}")


def _results(first: FinishedRun, second: FinishedRun, names: tuple[str, str]) -> Html:
    """The main figures, the evaluations of the same thing, and every other number in a box to be opened."""
    figures = [_figure_row(one, other) for one, other in differences.figures_of_both(first, second)]
    measured = [
        (f"{a.task.replace('_', ' ')} on {a.data.get('name')}: {name}", left, dict(told(b.results)).get(name), "")
        for a, b in differences.evaluations_of_both(first, second)
        for name, left in told(a.results)
    ]
    others = [
        (name, left, right, _difference(left, right))
        for name, left, right in differences.metrics_of_both(first, second)
    ]
    headings = ("figure", *names, f"{names[0]} minus {names[1]}")
    return join(
        [
            table(headings, figures, caption="Main results, before → after", numeric=(1, 2, 3)),
            table(headings, measured, caption="Evaluations of the same data", numeric=(1, 2, 3)) if measured else "",
            Html(
                f"<details><summary>Every number that was measured</summary>"
                f"{table(headings, others, numeric=(1, 2, 3))}</details>"
            )
            if others
            else "",
        ]
    )


def _figure_row(one: Figure | None, other: Figure | None) -> tuple[str, str | None, str | None, str | None]:
    """The name, both figures as text, and the first minus the second."""
    known = one or other
    assert known is not None, "a figure is one run's at least"
    gap = None
    if one is not None and other is not None:
        far = one.after - other.after
        gap = ("+" if far > 0 else "") + known.told(far)
    return known.name, None if one is None else one.whole, None if other is None else other.whole, gap


def _difference(left: float | None, right: float | None) -> str | None:
    if left is None or right is None:
        return None
    gap = left - right
    return f"{'+' if gap > 0 else ''}{number(gap)}"


def _differ(found: Sequence[Difference], names: tuple[str, str], caption: str) -> Html:
    if not found:
        return Html("<p>No difference.</p>")
    rows = [(name, _value(left), _value(right)) for name, left, right in found]
    return table(("what", *names), rows, caption=caption)


def _settings(found: Sequence[Difference], names: tuple[str, str], same_kind: bool) -> Html:
    """Settings key by key; of stages of different kinds those that only one kind has are in a box to be opened."""
    if same_kind:
        return _differ(found, names, "Settings, key by key")
    both, alone = differences.shared(found)
    inside = "<summary>Settings that only one of the kinds has</summary>" + _differ(alone, names, "Of one kind alone")
    return join([_differ(both, names, "Settings that both have, key by key"), Html(f"<details>{inside}</details>")])


def _value(value: Any) -> object:
    """A value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return (
        str(value) if isinstance(value, str | list | Mapping) else f"{value:g}" if isinstance(value, float) else value
    )


def _facts(first: FinishedRun, second: FinishedRun, names: tuple[str, str]) -> Html:
    left, right = (dict([("folder", str(run.folder)), *sections.known(run)]) for run in (first, second))
    return table(("", *names), [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])])


def _notes(runs: Iterable[FinishedRun]) -> Html:
    return join(sections.notes(run) for run in runs)
