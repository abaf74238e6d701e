"""What was measured of a finished run, kept beside what it is: `RUN/evaluations/<task>-<digest>.json`.

A run's own files never change; evaluations are added to it. The same task on the same data with the same settings has
the same name, so measuring again replaces what was measured before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from finetune.durable import write_json
from finetune.errors import InputError

FOLDER = "evaluations"
FORMAT = 1

Task = Literal["loss", "score", "reward", "win_rate", "ifeval", "gsm8k", "answers", "lm_eval"]
TASKS: tuple[str, ...] = get_args(Task)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Evaluation:
    """One measurement; all of it JSON.

    data: what it was measured on: name, digest, rows. settings: how (sampling, judge, limits). results: what came out;
    a figure with a 95 % interval is {"value", "low", "high"}, shares are in [0, 1]; docs/evaluation.md lists them by
    task. rows: one object for each row measured. against: the other run of a comparison: name, and fingerprint or
    "base". made: when, UTC. seconds: how long it took.
    """

    task: Task
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    against: Mapping[str, Any] | None = None
    seconds: float = 0.0
    made: str = field(default_factory=_now)

    @property
    def file_name(self) -> str:
        """From task, data, settings and the other run: equal measurements have equal names."""
        content = [self.task, dict(self.data), dict(self.settings), self.against]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.task}-{digest[:12]}.json"


def keep_evaluation(run: Path, evaluation: Evaluation) -> Path:
    """Write an evaluation into a run's folder, whole or not at all. Returns the file."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / evaluation.file_name
    write_json(path, {"format": FORMAT, **asdict(evaluation)})
    return path


def read_evaluations(run: Path, unreadable: Callable[[InputError], None] | None = None) -> list[Evaluation]:
    """All evaluations of a run, the oldest first.

    unreadable: is told of a file that is none, and the others are returned; None = InputError is raised.
    """
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            found.append(_read(path))
        except InputError as error:
            if unreadable is None:
                raise
            unreadable(error)
    return sorted(found, key=lambda evaluation: evaluation.made)


def _read(path: Path) -> Evaluation:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise InputError(f"{path} was written by another version of finetune: move it away, and measure again")
        found = Evaluation(**content)
        _check(found)
        return found
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not an evaluation ({error}): move it away, and measure again") from error


def _check(found: Evaluation) -> None:
    """Raises TypeError where a value is of another kind than it should be."""
    objects = [found.data, found.settings, found.results, *([] if found.against is None else [found.against])]
    lists = isinstance(found.rows, list) and all(isinstance(row, dict) for row in found.rows)
    texts = isinstance(found.task, str) and isinstance(found.made, str)
    if not lists or not texts or not all(isinstance(each, dict) for each in objects):
        raise TypeError("its values are of other kinds")
