"""What the .wandb files of offline runs say; wandb itself reads them only in Go."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune.engine.wandb_file import read_records


@dataclass
class Session:
    """One offline folder. run: its RunRecord. history: rows as they were logged. ended: exit code, None = killed."""

    folder: Path
    raw: bytes
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)  # metric or glob -> its step metric
    artifacts: list[Any] = field(default_factory=list)
    ended: int | None = None

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The history without what wandb adds, and without tables."""
        rows = [{k: v for k, v in row.items() if k[0] != "_" and not isinstance(v, dict)} for row in self.history]
        return [row for row in rows if len(row) > 1]

    def table(self, name: str) -> list[tuple[int, list[dict[str, Any]]]]:
        """Each logging of a sample table: (step, rows)."""
        found = []
        for row in self.history:
            if value := row.get(f"samples/{name}"):
                content = json.loads((self.folder / "files" / value["path"]).read_text())
                rows = [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]
                found.append((row["step"], rows))
        return found


def sessions(run: Path) -> list[Session]:
    """The offline folders of a stage's run folder, oldest first."""
    return [read(path) for path in sorted(run.glob("wandb/offline-run-*/*.wandb"))]


def read(path: Path) -> Session:
    session = Session(path.parent, path.read_bytes())
    for record in read_records(session.raw):
        _note(session, record)
    return session


def _note(session: Session, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        session.run = record.run
        _update(session.config, record.run.config.update)
    elif kind == "config":
        _update(session.config, record.config.update)
    elif kind == "summary":
        _update(session.summary, record.summary.update)
    elif kind == "history":
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        session.history.append(row)
    elif kind == "metric":
        session.steps[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "artifact":
        session.artifacts.append(record.artifact)
    elif kind == "exit":
        session.ended = record.exit.exit_code


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = target
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
