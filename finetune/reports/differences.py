"""What two runs differ in, as plain values: settings key by key, data, environment, results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from finetune.plan.evaluations import Evaluation
from finetune.recipe.positions import KeyPath, key_path_text
from finetune.reports.read import FinishedRun
from finetune.reports.words import Figure, counted, figures

Difference = tuple[str, Any, Any]
"""(what, in the first, in the second); a value that one of them has not is MISSING."""
MISSING = "(none)"


def flat(value: Any, path: KeyPath = ()) -> dict[str, Any]:
    """Every value of plain data by its key path: {"train.epochs": 2.0, "data[0].path": …}. Empty ones count."""
    entries: Iterator[tuple[str | int, Any]]
    if isinstance(value, Mapping) and value:
        entries = ((str(key), entry) for key, entry in value.items())
    elif isinstance(value, list) and value:
        entries = iter(enumerate(value))
    else:
        return {key_path_text(path): value}
    found: dict[str, Any] = {}
    for key, entry in entries:
        found |= flat(entry, (*path, key))
    return found


def between(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """The keys of flat data whose values differ, in their order."""
    names = dict.fromkeys([*first, *second])
    return [
        (name, first.get(name, MISSING), second.get(name, MISSING))
        for name in names
        if first.get(name, MISSING) != second.get(name, MISSING)
    ]


def nested(first: Any, second: Any, path: KeyPath = ()) -> Iterator[Difference]:
    """Differences of plain data key by key; a section or a data source that only one has is one difference."""
    if first == second:
        return
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys: Iterable[str | int] = dict.fromkeys([*first, *second])
        sides = (first, second)
    elif isinstance(first, list) and isinstance(second, list) and any(isinstance(x, Mapping) for x in first + second):
        keys = range(max(len(first), len(second)))
        sides = (dict(enumerate(first)), dict(enumerate(second)))
    else:
        yield key_path_text(path), short(first), short(second)
        return
    for key in keys:
        yield from nested(sides[0].get(key, MISSING), sides[1].get(key, MISSING), (*path, key))


def short(value: Any) -> Any:
    """A value in one line: of a data source its name, of a section what it says, without what is null."""
    if isinstance(value, Mapping):
        name = next((value[key] for key in ("path", "hub", "stage") if value.get(key)), None)
        said = {key: entry for key, entry in value.items() if entry not in (None, {}, [])}
        return name or ", ".join(f"{key} {short(entry)}" for key, entry in said.items()) or "{}"
    if isinstance(value, list):
        return ", ".join(str(short(entry)) for entry in value) or "[]"
    return value


def recipe_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Of two manifests' recipes what is the same for all stages: seed, base, adapter."""
    parts = ("name", "seed", "model", "adapter")
    left, right = ({key: (one.get("recipe") or {}).get(key, MISSING) for key in parts} for one in (first, second))
    found = list(nested(left, right))
    contents = [str((one.get("base") or {}).get("digest")) for one in (first, second)]
    if contents[0] != contents[1] and not any(name.startswith("model.base") for name, _, _ in found):
        found.append(("the base's content", contents[0][:19], contents[1][:19]))
    return found


def stage_differences(first: FinishedRun, second: FinishedRun) -> list[Difference]:
    """Settings of the stage, and the runs that it read."""
    found = list(nested(first.manifest.get("settings") or {}, second.manifest.get("settings") or {}))
    read = [
        {f"{name}, which it reads": value[:12] for name, value in (run.manifest.get("inputs") or {}).items()}
        for run in (first, second)
    ]
    return found + between(read[0], read[1])


def shared(found: Sequence[Difference]) -> tuple[list[Difference], list[Difference]]:
    """(those where both have a value, those where only one has)."""
    both = [one for one in found if MISSING not in one[1:]]
    return both, [one for one in found if one not in both]


def data_differences(first: FinishedRun, second: FinishedRun) -> list[Difference]:
    """Sources by name and content, and counts."""
    return between(*(_data(run.manifest.get("data") or {}) for run in (first, second)))


def environment_differences(first: FinishedRun, second: FinishedRun) -> list[Difference]:
    found = [run.manifest.get("environment") or {} for run in (first, second)]
    return between(*({**flat({k: v for k, v in one.items() if k != "libraries"}), **_libraries(one)} for one in found))


def figures_of_both(first: FinishedRun, second: FinishedRun) -> list[tuple[Figure | None, Figure | None]]:
    """The main results of both, the same figure together."""
    left, right = ({figure.name: figure for figure in figures(run.manifest)} for run in (first, second))
    return [(left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


def metrics_of_both(first: FinishedRun, second: FinishedRun) -> list[tuple[str, float | None, float | None]]:
    """Every number that the stages measured, by name."""
    left, right = (_numbers(flat(run.manifest.get("metrics") or {})) for run in (first, second))
    return [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


def evaluations_of_both(first: FinishedRun, second: FinishedRun) -> list[tuple[Evaluation, Evaluation]]:
    """The newest evaluations of both that measured the same: equal in task, data and settings."""
    left, right = ({_measured(one): one for one in run.evaluations if one.task != "answers"} for run in (first, second))
    return [(left[key], right[key]) for key in left if key in right]


def answers_of_both(first: FinishedRun, second: FinishedRun, names: Sequence[str]) -> list[dict[str, Any]]:
    """Prompts that both runs have answered in evaluations, with the two answers under `names`."""
    left, right = (_answers(run) for run in (first, second))
    return [
        {**left[key][0], **left[key][2], names[0]: left[key][1], names[1]: right[key][1]}
        for key in left
        if key in right
    ]


def _answers(run: FinishedRun) -> dict[str, tuple[dict[str, Any], str, dict[str, Any]]]:
    """(prompt and messages, the run's own answer, the row's own where it is known) by what was asked: the newest."""
    found = {}
    for evaluation in run.evaluations:
        if evaluation.task != "answers":
            continue
        names = [name for name in evaluation.results.get("names") or () if name != "base"]
        own = run.stage if run.stage in names else names[-1] if names else ""
        for row in evaluation.rows:
            if isinstance(row.get(own), str):
                asked = {key: row[key] for key in ("prompt", "messages") if row.get(key)}
                known = {"expected": row["expected"]} if row.get("expected") and own != "expected" else {}
                drawn = {key: value for key, value in evaluation.settings.items() if key != "names"}
                found[f"{asked} {drawn}"] = (asked, str(row[own]), known)
    return found


def _measured(evaluation: Evaluation) -> str:
    """What was measured, whoever it was measured of."""
    settings = {key: value for key, value in evaluation.settings.items() if key != "names"}
    data = evaluation.data.get("digest") or evaluation.data.get("name")
    return str((evaluation.task, data, sorted(flat(settings).items(), key=str), evaluation.against))


def _data(found: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key.replace("_", " "): value for key, value in found.items() if isinstance(value, int)}
    sources = {}
    for held_out in ("sources", "held_out_sources"):
        for source in found.get(held_out) or ():
            name = f"{source.get('source')}{' (held out)' if held_out != 'sources' else ''}"
            sources[name] = f"{counted(source.get('used') or 0, 'row')} of content {str(source.get('digest'))[-12:]}"
    return {**sources, **counts, **flat({"left out": found.get("dropped") or {}})}


def _libraries(environment: Mapping[str, Any]) -> dict[str, Any]:
    return dict(environment.get("libraries") or {})


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
