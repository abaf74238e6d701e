"""Rounds: groups of stages that a recipe repeats, written out as plain stages before the recipe is validated.

    rlhf:                                                      sft          (above the group)
      repeat: 2                                                best.1:  policy: sft
      stages:                                                  sft2.1:  data: [{stage: best.1}]
        best: {policy: {first: sft, then: sft2}, …}      →     best.2:  policy: sft2.1
        sft2: {data: [{stage: best, rounds: all}], …}          sft2.2:  data: [{stage: best.1}, {stage: best.2}]
    last: {start_from: sft2, …}                                last:    start_from: sft2.2

docs/rounds.md is the guide. Everything works on what was read, so that what is wrong here is told together with what
the schema finds, at the place where the user wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from finetune.errors import Problem
from finetune.recipe.positions import KeyPath
from finetune.recipe.references import REFERENCE_KEYS, ROW_LISTS
from finetune.recipe.source import Source, told_once
from finetune.recipe.words import describe_value, did_you_mean

MAX_ROUNDS = 100
"""More rounds than this are a slip of the finger: Llama 2 had five, Llama 3 six."""


@dataclass(frozen=True)
class _Group:
    """stages: names in order. sure: false where `repeat` is wrong, which is told; there it counts as 1."""

    name: str
    rounds: int
    stages: tuple[str, ...]
    sure: bool


@dataclass(frozen=True)
class _Reader:
    """The stage that is being written out. group: None for a stage outside groups."""

    name: str
    group: _Group | None = None
    round: int = 1

    def reads(self, name: str) -> bool:
        """Does the stage of its group stand above it?"""
        order = self.group.stages if self.group else ()
        return order.index(name) < order.index(self.name)


def without_groups(data: dict[str, Any], source: Source) -> tuple[dict[str, Any], Source, list[Problem]]:
    """The recipe as plain stages, a source that knows where everything in it was written, and what is wrong."""
    stages = data.get("stages")
    if not isinstance(stages, Mapping):
        return data, source, []
    problems: list[Problem] = []
    groups = {name: _group(name, stages[name], source, problems) for name in stages if is_group(stages[name])}
    writer = _Writer({stage: group for group in groups.values() for stage in group.stages}, source, problems)
    flat: dict[str, Any] = {}
    places: dict[str, KeyPath] = {name: ("stages", name) for name in groups}
    for path, reader, stage in _readers(stages, groups):
        name = reader.name if reader.group is None else f"{reader.name}.{reader.round}"
        if (other := places.setdefault(reader.name, path)) != path:
            problems.append(_name_taken(path, reader.name, other, source))
        elif name in flat:
            problems.append(_name_taken(path, name, writer.origins.get(("stages", name), ("stages", name)), source))
        else:
            flat[name] = writer.value(stage, ("stages", name), path, reader)
    return {**data, "stages": flat}, replace(source, origins=writer.origins), told_once(problems)


def is_group(stage: Any) -> bool:
    """A group has no kind, and `repeat` or a section `stages`."""
    return (
        isinstance(stage, Mapping)
        and "kind" not in stage
        and ("repeat" in stage or isinstance(stage.get("stages"), Mapping))
    )


def _group(name: str, section: Mapping[str, Any], source: Source, problems: list[Problem]) -> _Group:
    here: KeyPath = ("stages", name)
    for key in section:
        if key not in ("repeat", "stages"):
            hint = did_you_mean(key, ("repeat", "stages")) or "a group of stages knows: repeat, stages"
            problems.append(source.problem((*here, key), "unknown key", hint))
    repeat, inner = section.get("repeat"), section.get("stages")
    sure = isinstance(repeat, int) and not isinstance(repeat, bool) and 1 <= repeat <= MAX_ROUNDS
    if "repeat" not in section:
        message = f"missing key: group {name}, which begins here, needs it (how many rounds)"
        problems.append(source.problem((*here, "repeat"), message, at=here))
    elif not sure:
        message = f"expected a whole number of at least 1 and at most {MAX_ROUNDS}; found {describe_value(repeat)}"
        problems.append(source.problem((*here, "repeat"), message))
    if not isinstance(inner, Mapping) or not inner:
        message = f"expected a section with the group's stages; found {describe_value(inner)}"
        problems.append(source.problem((*here, "stages"), message))
        return _Group(name, 1, (), False)
    for stage, content in inner.items():
        if is_group(content):
            message = "a group cannot stand in a group: write one after the other"
            problems.append(source.problem((*here, "stages", stage), message))
    plain = tuple(stage for stage, content in inner.items() if not is_group(content))
    return _Group(name, repeat if sure and isinstance(repeat, int) else 1, plain, sure)


def _readers(stages: Mapping[str, Any], groups: Mapping[str, _Group]) -> Iterator[tuple[KeyPath, _Reader, Any]]:
    """(where it is written, stage, its content), in the order in which they run."""
    for name, content in stages.items():
        group = groups.get(name)
        if group is None:
            yield ("stages", name), _Reader(name), content
            continue
        for number in range(1, group.rounds + 1):
            for stage in group.stages:
                yield ("stages", name, "stages", stage), _Reader(stage, group, number), content["stages"][stage]


def _name_taken(path: KeyPath, name: str, other: KeyPath, source: Source) -> Problem:
    line = source.positions.get(other)
    where = f" (line {line.line})" if line else ""
    rule = "names are unique over the whole recipe, those of rounds (name.1) and groups too"
    return source.problem(path, f"there is another '{name}'{where}: {rule}")


def repeated_work(stages: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    """Stages written out that differ in nothing from themselves in another round: they would do the same work again."""
    seen: dict[KeyPath, list[Any]] = {}
    for name, content in stages.items():
        path = source.written(("stages", name))
        before = seen.setdefault(path, [])
        if content in before:
            first = before.index(content) + 1
            yield source.problem(
                ("stages", name),
                f"does the same in rounds {first} and {len(before) + 1}: nothing that it reads differs",
                "put it above the group, or let it read the round before: {first: …, then: …}",
            )
        before.append(content)


@dataclass
class _Writer:
    """Writes stages out. groups: by the names of their stages. origins: path in what is written out → path as the user
    wrote it."""

    groups: Mapping[str, _Group]
    source: Source
    problems: list[Problem]

    def __post_init__(self) -> None:
        self.origins: dict[KeyPath, KeyPath] = {}

    def value(self, value: Any, path: KeyPath, written: KeyPath, reader: _Reader) -> Any:
        """What the value, written at `written`, is in the reader's round; it goes to `path`."""
        if path != written:
            self.origins[path] = written
        if _is_by_round(value):
            return self._by_round(value["round"], path, written, reader)
        if path[2:] in ROW_LISTS and isinstance(value, list):
            return self._rows(value, path, written, reader)
        if path[2:] in REFERENCE_KEYS:
            return self._references(value, path, written, reader)
        if isinstance(value, Mapping):
            return {key: self.value(inner, (*path, key), (*written, key), reader) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(inner, (*path, i), (*written, i), reader) for i, inner in enumerate(value)]
        return value

    def _by_round(self, values: list[Any], path: KeyPath, written: KeyPath, reader: _Reader) -> Any:
        if reader.group is None:
            self._problem(written, "a value by round belongs to a stage in a group, which has rounds")
        elif reader.group.sure and len(values) != reader.group.rounds:
            self._problem(
                written,
                f"{{round: …}} needs a value for each of the {reader.group.rounds} rounds of group "
                f"{reader.group.name}; found {describe_value(values)}",
            )
        if not values:
            return None
        index = min(reader.round, len(values)) - 1
        return self.value(values[index], path, (*written, "round", index), reader)

    def _references(self, value: Any, path: KeyPath, written: KeyPath, reader: _Reader) -> Any:
        """A name, a list of names, or `earlier: all`."""
        if path[2:] == ("earlier",) and value == "all":
            if reader.group is None:
                hint = "name the reject stages: [best]"
                self._problem(written, "all means this stage's earlier rounds, and it is in no group", hint)
                return []
            names = [f"{reader.name}.{number}" for number in range(1, reader.round)]
            self.origins |= {(*path, index): written for index in range(len(names))}
            return names
        if not isinstance(value, list):
            return self._reference(value, path, written, reader)
        found = []
        for index, entry in enumerate(value):
            here, place = (*path, index), (*written, index)
            entry = self.value(entry, here, place, reader)
            found.append(self._reference(entry, here, self.origins.get(here, place), reader))
        return found

    def _reference(self, value: Any, path: KeyPath, written: KeyPath, reader: _Reader) -> Any:
        if isinstance(value, str):
            return self._named(value, written, reader)
        if not (isinstance(value, Mapping) and {"first", "then"} & set(value)):
            return value
        first, then = value.get("first"), value.get("then")
        somewhere = next((name for name in (first, then) if isinstance(name, str)), "?")
        if reader.group is None:
            self._problem(written, "{first, then} belongs to a stage in a group, which has rounds")
            return somewhere
        if set(value) != {"first", "then"} or not isinstance(first, str | None) or not isinstance(then, str):
            hint = "first: a stage above the group, or null; then: a stage of the group, of the round before"
            self._problem(written, f"expected {{first: name, then: name}}; found {describe_value(value)}", hint)
            return somewhere
        if then not in reader.group.stages:
            message = f"'{then}' is no stage of group {reader.group.name}: then names one of the round before"
            known = f"the stages are: {', '.join(reader.group.stages)}"
            self._problem((*written, "then"), message, did_you_mean(then, reader.group.stages) or known)
        key: Literal["first", "then"] = "first" if reader.round == 1 else "then"
        self.origins[path] = (*written, key)
        if key == "then":
            return f"{then}.{reader.round - 1}"
        return first and self._named(first, (*written, key), reader)

    def _named(self, name: str, written: KeyPath, reader: _Reader) -> str:
        """The written-out name of a stage that is referred to by its plain name; others as they are."""
        group = self.groups.get(name)
        if group is None:
            return name
        if reader.group is not group:
            return f"{name}.{group.rounds}"
        if not reader.reads(name):
            what = "is this stage itself" if name == reader.name else "stands below in the round"
            hint = f"of the round before it is {{first: a stage above the group or null, then: {name}}}"
            self._problem(written, f"stage '{name}' {what}; a stage reads only stages above it", hint)
        return f"{name}.{reader.round}"

    def _rows(self, entries: list[Any], path: KeyPath, written: KeyPath, reader: _Reader) -> list[Any]:
        found: list[Any] = []
        for index, entry in enumerate(entries):
            place = (*written, index)
            if not isinstance(entry, Mapping):
                found.append(self.value(entry, (*path, len(found)), place, reader))
                continue
            stage, rest = entry.get("stage"), {key: inner for key, inner in entry.items() if key != "rounds"}
            if "rounds" in entry:
                own = not isinstance(stage, str) or self.groups.get(stage) is reader.group
                for number in self._rounds_of(entry, place, reader):
                    at = replace(reader, round=number) if own else reader
                    row = self.value({**rest, "stage": None}, (*path, len(found)), place, at)
                    row.pop("stage") if stage is None else row.update(stage=f"{stage}.{number}")
                    found.append(row)
                continue
            row = self.value(rest, (*path, len(found)), place, reader)
            if isinstance(row, dict) and row.get("stage") is not None:
                here = (*path, len(found), "stage")
                row["stage"] = self._reference(row["stage"], here, self.origins.get(here, (*place, "stage")), reader)
                if row["stage"] is None:
                    continue  # {stage: {first: null, then: …}}: nothing in the first round
            found.append(row)
        if entries and not found and path[2:] != ("held_out", "data"):
            hint = "add a source that the first round has, such as a file"
            self._problem(written, f"nothing is left in round {reader.round}: no earlier round is there yet", hint)
        return found

    def _rounds_of(self, entry: Mapping[str, Any], place: KeyPath, reader: _Reader) -> range:
        """Of which rounds an entry with `rounds` is read. Empty after a problem."""
        which, stage = entry["rounds"], entry.get("stage")
        at = (*place, "rounds")
        group = self.groups.get(stage) if isinstance(stage, str) else reader.group if stage is None else None
        if which not in ("all", "earlier"):
            self._problem(at, f"expected one of all, earlier; found {describe_value(which)}")
        elif stage is not None and group is None:
            what = f"'{stage}' is in no group" if isinstance(stage, str) else "stage is no name"
            self._problem(at, f"rounds belongs to a stage of a group; {what}", "remove rounds")
        elif group is None or (stage is None and not _has_round_values(entry)):
            hint = "give stage: a stage of a group, or in a group path: {round: [a.jsonl, …]}"
            self._problem(at, "rounds belongs to an entry that differs by round", hint)
        elif group is not reader.group and which == "earlier":
            self._problem(at, f"earlier is for the stages of group {group.name} itself", "write all, or remove rounds")
        elif group is not reader.group:
            return range(1, group.rounds + 1)
        else:
            this_round = which == "all" and (stage is None or reader.reads(str(stage)))
            return range(1, reader.round + (1 if this_round else 0))
        return range(0)

    def _problem(self, written: KeyPath, message: str, hint: str | None = None) -> None:
        self.problems.append(self.source.problem(written, message, hint))


def _is_by_round(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"round"} and isinstance(value["round"], list)


def _has_round_values(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _is_by_round(value) or any(map(_has_round_values, value.values()))
    return isinstance(value, list) and any(map(_has_round_values, value))
