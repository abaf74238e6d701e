"""Where each value of a recipe came from: a line of the file, a --set, or a dict that has no lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune.errors import Problem
from finetune.recipe.positions import KeyPath, Position, key_path_text, position_at


@dataclass(frozen=True)
class Source:
    """`name` begins every message: the file as the user gave it. `overrides`: key path → the --set that gave it."""

    name: str
    positions: Mapping[KeyPath, Position] = field(default_factory=dict)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)

    def problem(self, path: KeyPath, message: str, hint: str | None = None, *, at: KeyPath | None = None) -> Problem:
        """A Problem of the value at `path`, with its line; `at` names the line of another key path instead."""
        key_path = key_path_text(path)
        if given := self._override(path):
            return Problem(message, key_path, None, f"given by --set {given}" + (f"; {hint}" if hint else ""))
        position = position_at(self.positions, path if at is None else at)
        return Problem(message, key_path, position.line if position else None, hint)

    def _override(self, path: KeyPath) -> str | None:
        for length in range(len(path), 0, -1):
            if given := self.overrides.get(path[:length]):
                return given
        if path in self.positions:
            return None
        inside = (given for key_path, given in self.overrides.items() if key_path[: len(path)] == path)
        return next(inside, None)
