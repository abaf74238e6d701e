"""Where each value of a recipe came from: a line of the file, a --set, or a dict that has no lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from finetune.errors import Problem
from finetune.recipe.positions import KeyPath, Position, key_path_text, position_at


@dataclass(frozen=True)
class Source:
    """`name` begins every message: the file as the user gave it. `overrides`: key path → the --set that gave it.
    `origins`: key path of a recipe whose groups are written out → key path as the user wrote it, where they differ.
    """

    name: str
    positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    origins: Mapping[KeyPath, KeyPath] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str, hint: str | None = None, *, at: KeyPath | None = None) -> Problem:
        """A Problem of the value at `path`, with its line; `at` names the line of another key path instead."""
        path, key_path = self.written(path), self.text(path)
        if given := self._override(path):
            return Problem(message, key_path, None, f"given by --set {given}" + (f"; {hint}" if hint else ""))
        position = position_at(self.positions, path if at is None else self.written(at))
        return Problem(message, key_path, position.line if position else None, hint)

    def written(self, path: KeyPath) -> KeyPath:
        """The key path as the user wrote it."""
        for length in range(len(path), 0, -1):
            if origin := self.origins.get(path[:length]):
                return (*origin, *path[length:])
        return path

    def text(self, path: KeyPath) -> str:
        """The key path as the user wrote it, as it is told: stages.sft.data[0]."""
        return key_path_text(self.written(path))

    def stage(self, name: str) -> str:
        """A stage's name as the user wrote it: `best` for best.2 of a group."""
        return str(self.written(("stages", name))[-1])

    def _override(self, path: KeyPath) -> str | None:
        for length in range(len(path), 0, -1):
            if given := self.overrides.get(path[:length]):
                return given
        if path in self.positions:
            return None
        inside = (given for key_path, given in self.overrides.items() if key_path[: len(path)] == path)
        return next(inside, None)


def told_once(problems: Iterable[Problem]) -> list[Problem]:
    """What is the same in several rounds is told once, as in the first."""
    found: dict[tuple[object, ...], Problem] = {}
    for problem in problems:
        found.setdefault((problem.key_path, problem.line, problem.message), problem)
    return list(found.values())
