"""The recipe in the making: every value with a comment that says where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune.migrate.account import Account, Fate, Section, shown
from finetune.migrate.places import Places
from finetune.recipe.positions import KeyPath, key_path_text


@dataclass
class Draft:
    """recipe: as YAML would give it. comments: key path of the recipe → what stands beside it. origins: key path,
    as text, → theirs. stage: its name."""

    account: Account
    places: Places
    stage: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    comments: dict[KeyPath, str] = field(default_factory=dict)
    origins: dict[str, KeyPath] = field(default_factory=dict)

    def begin(self, kind: str, comment: str) -> None:
        """The one stage that their file is about."""
        self.stage = kind
        self.put((*self.of_stage(), "kind"), kind, comment)

    def of_stage(self, *keys: str | int) -> KeyPath:
        return ("stages", self.stage, *keys)

    def train(self, key: str) -> KeyPath:
        return self.of_stage("train", key)

    def has(self, path: KeyPath) -> bool:
        section: Any = self.recipe
        for key in path:
            if not isinstance(section, dict) or key not in section:
                return False
            section = section[key]
        return True

    def put(self, path: KeyPath, value: Any, comment: str = "") -> None:
        section = self.recipe
        for key in path[:-1]:
            section = section.setdefault(str(key), {})
        section[str(path[-1])] = value
        self.comments[path] = comment

    def append(self, path: KeyPath, value: dict[str, Any], comments: dict[str, str]) -> None:
        """One more entry of a list of sections; comments: by the entry's keys."""
        if not self.has(path):
            self.put(path, [])
        entries: list[dict[str, Any]] = self._list(path)
        for key, comment in comments.items():
            self.comments[(*path, len(entries), key)] = comment
        entries.append(value)

    def carry(
        self, section: Section, key: str, path: KeyPath, value: Any, note: str = "", fate: Fate | None = None
    ) -> None:
        """Their key becomes ours: the comment names it, and what it said where we say it otherwise."""
        theirs = section.raw(key)
        name = key_path_text(section.at(key))
        said = name if theirs == value else f"{name}: {shown(theirs, key)}"
        self.put(path, value, f"{said}; {note}" if note else said)
        self.origins[key_path_text(path)] = section.at(key)
        section.tell(key, fate or _fate(note), _where(path, note))

    def default(self, path: KeyPath, value: Any, key: str) -> None:
        """What their tool does where the key is absent, written out."""
        self.put(path, value, f"default of {self.account.tool}'s {key}")

    def also(self, section: Section, key: str, path: KeyPath, note: str = "") -> None:
        """One more of their keys that a value already put comes from."""
        if key in section.values:
            comment = self.comments.get(path, "")
            said = f"{key_path_text(section.at(key))}: {shown(section.raw(key), key)}"
            self.comments[path] = f"{comment}; {said}" if comment else said
            section.tell(key, _fate(note), _where(path, note))

    def _list(self, path: KeyPath) -> list[dict[str, Any]]:
        section: Any = self.recipe
        for key in path:
            section = section[key]
        found: list[dict[str, Any]] = section
        return found


def _fate(note: str) -> Fate:
    return Fate.CHANGED if note else Fate.CARRIED


def _where(path: KeyPath, note: str) -> str:
    return f"→ {key_path_text(path)}" + (f"; {note}" if note else "")
