"""What a stage refers to: other stages, adapter folders, and rows. One place that knows the keys of every kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from finetune.recipe.data_settings import DataSource
from finetune.recipe.positions import KeyPath
from finetune.recipe.schema import Stage

Wanted = Literal["adapter", "reward", "samples", "rows", "adapters"]
"""What a reference must lead to: an adapter that writes text, a reward model, a reject stage's samples, its rows, or
(average) adapters that are all of one sort."""

WRITES: Mapping[str, tuple[Wanted, ...]] = {
    "sft": ("adapter", "adapters"),
    "reward": ("reward", "adapters"),
    "dpo": ("adapter", "adapters"),
    "ppo": ("adapter", "adapters"),
    "grpo": ("adapter", "adapters"),
    "rloo": ("adapter", "adapters"),
    "average": ("adapter", "reward", "adapters"),
    "reject": ("samples", "rows"),
}
"""What a stage of each kind can be referred to for. An average is of the sort that it averages."""

_KEYS: tuple[tuple[KeyPath, Wanted], ...] = (
    (("start_from",), "adapter"),
    (("policy",), "adapter"),
    (("reward",), "reward"),
    (("safety", "reward"), "reward"),
    (("earlier",), "samples"),
    (("of",), "adapters"),
)
REFERENCE_KEYS = frozenset(keys for keys, _ in _KEYS)
"""Key paths within a stage that hold a name, or a list of names."""
ROW_LISTS: tuple[KeyPath, ...] = (("data",), ("prompts",), ("held_out", "data"))
"""Key paths within a stage that hold data sources."""


def references(stage: Any) -> Iterator[tuple[KeyPath, str, Wanted]]:
    """(key path within the stage, name or folder, what it must be) of every reference.

    stage: a validated stage, or what was read of one, whose wrong parts are passed over.
    """
    for keys, wanted in _KEYS:
        value = _inside(stage, keys)
        if isinstance(value, str) and value:
            yield keys, value, wanted
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                if isinstance(entry, str) and entry:
                    yield (*keys, index), entry, wanted
    for keys in ROW_LISTS:
        entries = _inside(stage, keys)
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            name = _inside(entry, ("stage",))
            if isinstance(name, str) and name:
                yield (*keys, index, "stage"), name, "rows"


def row_sources(stage: Stage) -> list[tuple[KeyPath, DataSource]]:
    """Every data source of a stage with its key path: data or prompts, then held-out ones."""
    found: list[tuple[KeyPath, DataSource]] = []
    for keys in ROW_LISTS:
        entries = _inside(stage, keys) or []
        found += [((*keys, index), source) for index, source in enumerate(entries)]
    return found


def _inside(value: Any, keys: KeyPath) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, str(key), None)
    return value
