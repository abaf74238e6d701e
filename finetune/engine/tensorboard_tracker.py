"""Event files for TensorBoard in the run folder. Nothing is sent, and nothing of the machine is named in them.

Written with TensorBoard's own protocol and record writer, not by its EventFileWriter: that puts the host's name into
the file's, and writes from a thread, so that a kill loses the last minutes. Here every line is in the file at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.engine.tracking import End, Metrics
from finetune.errors import InputError

_ROWS = 20
"""Of a table of samples: TensorBoard shows them one below the other."""


class TensorBoardTracker:
    """An open event file, a new one in each session. config: of the stage, written once. Raises InputError."""

    def __init__(self, config: Mapping[str, Any], resolved: Mapping[str, Any], folder: Path) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.plugins.text.metadata import create_summary_metadata
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise InputError(
                "track.tensorboard: tensorboard is not installed: pip install 'finetune[tensorboard]'"
            ) from error
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._tensor, self._types, self._text_metadata = tensor_pb2.TensorProto, types_pb2, create_summary_metadata
        folder.mkdir(parents=True, exist_ok=True)
        session = len(list(folder.glob("events.out.tfevents.*")))
        self._records = RecordWriter((folder / f"events.out.tfevents.{session:04}").open("xb"))
        self._write(file_version="brain.Event:2")
        if session == 0:
            told = json.dumps({**config, "resolved": dict(resolved)}, indent=2, ensure_ascii=False)
            self._text("stage", 0, "    " + told.replace("\n", "\n    "))

    @property
    def kept(self) -> None:
        """Every line is in the file when `log` returns."""

    def log(self, number: int, metrics: Metrics) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if isinstance(value, int | float) and name != "step"
        ]
        self._write(step=int(metrics["step"] or 0), summary=self._summary(value=values))

    def samples(self, number: int, name: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        shown = list(islice(rows, _ROWS))
        if shown:
            self._text(f"samples/{name}", step, markdown_table(shown))

    def close(self, end: End) -> None:
        self._records.close()

    def _text(self, tag: str, step: int, markdown: str) -> None:
        value = self._summary.Value(
            tag=tag,
            metadata=self._text_metadata(display_name=tag, description=""),
            tensor=self._tensor(dtype=self._types.DT_STRING, string_val=[markdown.encode()]),
        )
        self._write(step=step, summary=self._summary(value=[value]))

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._records.flush()


def markdown_table(rows: list[Mapping[str, Any]]) -> str:
    """Rows of the same keys as one table, every cell on one line."""

    def cells(values: Iterable[Any]) -> str:
        shown = (str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ↵ ") for value in values)
        return "| " + " | ".join(shown) + " |"

    columns = list(rows[0])
    return "\n".join(
        [cells(columns), cells("---" for _ in columns), *(cells(row[key] for key in columns) for row in rows)]
    )
