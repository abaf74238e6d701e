"""A measurement under way: what is already known of it is kept in a journal, and in the end it is kept in the run.

The journal lies in `RUN/evaluations/<task>-<digest>.part/`, by the digest that names the evaluation itself. So a
measurement that was killed goes on when the same one is asked for, pays for no answer or verdict twice, and leaves
nothing under the name of an evaluation before it is whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from finetune.durable import is_disk_full
from finetune.engine.sampling_journal import Journal, open_journal
from finetune.errors import DiskFullError, InputError, RunBusyError
from finetune.plan.evaluations import FOLDER, Evaluation, Task, keep_evaluation
from finetune.plan.manifest import check_files, read_manifest
from finetune.release.lineage import key_of

Say = Callable[[str], None]


class Measurement:
    """One measurement of `run`. data, settings, against: as in Evaluation; together with the task they name it."""

    def __init__(
        self,
        run: Path,
        task: Task,
        *,
        data: Mapping[str, Any],
        settings: Mapping[str, Any],
        against: Mapping[str, Any] | None = None,
        say: Say,
    ) -> None:
        self._say = say
        self.run, self.task = run, task
        self.data, self.settings, self.against = dict(data), dict(settings), against
        self._began = time.monotonic()
        name = Evaluation(task, self.data, self.settings, {}, against=against).file_name
        self._work = run / FOLDER / f"{Path(name).stem}.part"
        self._journal: Journal | None = None
        self._lock: IO[str] | None = None  # open, and so held, as long as this object is

    def recall(self, kind: str) -> Iterator[dict[str, Any]]:
        """What an earlier attempt noted of a kind, in order."""
        with self._told():
            journal = self._open()
        for entry in journal.read():
            if entry["kind"] == kind:
                yield entry

    def note(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Keep a part of the work: it is on the disk when this returns."""
        with self._told():
            self._open().append({"kind": kind, **entry})

    def keep(
        self, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = (), *, began: float | None = None
    ) -> Evaluation:
        """Write the evaluation into the run, and remove the journal. began: time.monotonic() of before this object."""
        seconds = round(time.monotonic() - (self._began if began is None else began), 1)
        found = Evaluation(self.task, self.data, self.settings, results, rows, self.against, seconds)
        if not os.access(self.run, os.W_OK):  # a shared folder of finished runs
            self._say(f"{self.run} cannot be written: the evaluation is not kept in it")
            return found
        with self._told():
            path = keep_evaluation(self.run, found)
        self._say(f"kept in {path}")
        shutil.rmtree(self._work, ignore_errors=True)
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise DiskFullError(
                    f"the disk is full: {self.run / FOLDER} could not be written. Free some space and give the same "
                    "command again: what is there already is not done twice"
                ) from error
            raise InputError(
                f"{self.run / FOLDER} cannot be written ({error.strerror}): answers are kept there. Copy the run, and "
                "measure the copy"
            ) from error

    def _open(self) -> Journal:
        if self._journal is None:
            self._work.mkdir(parents=True, exist_ok=True)
            self._lock = (self._work / "lock").open("w")
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunBusyError(f"another process is at this very evaluation of {self.run}: wait for it") from None
            header = {"task": self.task, "data": self.data, "settings": self.settings, "against": self.against}
            self._journal = open_journal(self._work, header)
        return self._journal


def opened(run: Path) -> dict[str, Any]:
    """The manifest of a finished run, its files checked. Raises InputError."""
    manifest = read_manifest(run)
    if manifest is None:
        raise InputError(f"{run} has no manifest.json: not the folder of a finished run")
    check_files(run, manifest)
    return manifest


def opened_writer(run: Path) -> dict[str, Any]:
    """As `opened`, of a run that writes answers. Raises InputError for reward models and sampled rows."""
    manifest = opened(run)
    if manifest["kind"] == "reward":
        raise InputError(f"{run} is a reward model: it scores answers and writes none. Measure a run that writes")
    if manifest["kind"] == "reject":
        raise InputError(f"{run} holds sampled rows, not a model: measure its policy, or what was trained on the rows")
    return manifest


def identity(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A run as evaluations name it: name and fingerprint."""
    return {"name": str(manifest.get("name") or run.name), "fingerprint": key_of(manifest)}
