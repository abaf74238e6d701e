"""Weights & Biases: one run a stage, grouped by chain, with its lineage, samples and, where asked for, artifacts.

The key comes from `wandb login` or WANDB_API_KEY; it is never read or written here. docs/tracking.md says what is sent.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from finetune.durable import write_json
from finetune.engine.lineage import Lineage
from finetune.engine.tracking import End, Metrics
from finetune.engine.wandb_file import rows_written, wait_for_end
from finetune.errors import InputError
from finetune.recipe.settings import WandbSettings

_NOTE = "finetune.json"
"""In the run's wandb folder: the id of the wandb run, by which a resumed session and later stages find it."""
_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}
_FLUSH_SECONDS = 1.0
"""So much of an offline run is lost by a kill -9; wandb's own 15 seconds are many steps of a small model."""
_TEXTS_OF_PROMPTS = "samples.jsonl"


class WandbTracker:
    """An open run. folder: the stage's work folder, in which wandb makes its own. Raises InputError."""

    def __init__(
        self,
        settings: WandbSettings,
        lineage: Lineage,
        resolved: Mapping[str, Any],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InputError("track.wandb: wandb is not installed: pip install 'finetune[wandb]'") from error
        self._wandb, self._settings, self._lineage, self._say = wandb, settings, lineage, say
        # A user who said "send nothing" in the environment is obeyed, whatever the recipe says.
        told = os.environ.get("WANDB_MODE")
        sends_less: dict[str | None, Literal["offline", "disabled"]] = {"offline": "offline", "disabled": "disabled"}
        mode = sends_less.get(told, settings.mode)
        note = _read_note(folder) or _new_note(folder, settings, lineage)
        earlier = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
        self._written = max((rows_written(file) for file in earlier), default=None)
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                tags=list(settings.tags) or None,
                name=lineage.name,
                group=lineage.group,
                job_type=lineage.kind,
                id=note["run"],
                resume="allow",
                mode=mode,
                reinit="create_new",  # a notebook's own run is left alone
                dir=str(folder),
                config={**lineage.config, "inputs": _inputs(lineage), "resolved": dict(resolved)},
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    host="-",  # wandb's default is this machine's name,
                    program="finetune",  # and the path of the command
                    x_disable_stats=True,
                    x_disable_meta=True,  # user name, paths and command line stay here
                    x_disable_machine_info=True,
                    x_save_requirements=False,
                    x_transaction_log_flush_interval=_FLUSH_SECONDS,
                ),
            )
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            if isinstance(error, wandb.errors.CommError):
                cure = "Is the server reachable, and the project yours? mode: offline needs neither"
            else:
                cure = "Log in with `wandb login`, or set mode: offline"
                reason = reason.removesuffix(". Use `wandb login` to log in")
            raise InputError(f"track.wandb: {reason}. {cure}") from error
        # wandb takes no row whose number is not above the last one's: it gets the count of all that it was told, which
        # goes on in a resumed session. Curves are drawn over our step.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        say(f"wandb: {mode}, project {settings.project}, run {note['run']}")
        self._use_inputs()

    @property
    def kept(self) -> int | None:
        """A kill -9 takes what wandb has not yet written, or sent; what it has is known from its last row's number."""
        if self._run.disabled:
            return None
        return self._written if self._run.offline else int(self._run.starting_step)

    def log(self, number: int, metrics: Metrics) -> None:
        self._run.log({key: value for key, value in metrics.items() if value is not None}, step=number)

    def samples(self, number: int, name: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        shown = list(islice(rows, self._settings.samples))
        if shown:
            columns = list(shown[0])
            table = self._wandb.Table(
                columns=columns, data=[[row[key] for key in columns] for row in shown], allow_mixed_types=True
            )
            self._run.log({"step": step, f"samples/{name}": table}, step=number)

    def close(self, end: End) -> None:
        if end.how == "finished":
            self._run.config.update({"resolved": dict(end.resolved)}, allow_val_change=True)
            self._run.summary.update(dict(end.results))
            if self._settings.artifacts == "outputs" and end.folder is not None:
                self._upload(end.folder, end.results)
        self._run.summary.update({"ended": end.how})
        self._run.finish(exit_code=_EXIT_CODES[end.how])
        for file in [] if self._run.disabled else Path(self._run.dir).parent.glob("*.wandb"):
            if not wait_for_end(file):
                self._say(f"wandb has not finished writing {file.name}: the end of it may be missing in the run folder")

    def _upload(self, folder: Path, results: Mapping[str, Any]) -> None:
        """What cannot go up is said; what was trained and proven is not lost for it."""
        aliases = ["latest", self._lineage.fingerprint[:12]]
        try:
            self._run.log_artifact(self._outputs(folder, results), aliases=aliases)
        except (self._wandb.errors.CommError, ValueError) as error:
            self._say(f"wandb: the outputs are not uploaded: {str(error).splitlines()[0]}")

    def _outputs(self, folder: Path, results: Mapping[str, Any]) -> Any:
        """The stage's files as an artifact, without the texts that were sampled but not asked for."""
        lineage = self._lineage
        kind = "rows" if lineage.kind == "reject" else "adapter"
        artifact = self._wandb.Artifact(
            f"{lineage.recipe}-{lineage.stage}",
            type=kind,
            metadata={"fingerprint": lineage.fingerprint, "kind": lineage.kind, "results": dict(results)},
        )
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name != _TEXTS_OF_PROMPTS:
                artifact.add_file(str(path), name=path.name)
        return artifact

    def _use_inputs(self) -> None:
        """Link the artifacts of the stages that this one reads. wandb can only do so online."""
        lineage = self._lineage
        if self._settings.artifacts == "none" or not lineage.inputs or self._run.disabled:
            return
        if self._run.offline:
            self._say("wandb: offline, so the artifacts this stage is made from are named in its config only")
            return
        for name, fingerprint in lineage.inputs.items():
            wanted = f"{lineage.recipe}-{name}:{fingerprint[:12]}"
            try:
                self._run.use_artifact(wanted)
            except (self._wandb.errors.CommError, ValueError) as error:
                reason = str(error).splitlines()[0]
                self._say(f"wandb: no artifact {wanted} to link to ({reason}): the config names the stage")


def _inputs(lineage: Lineage) -> dict[str, dict[str, Any]]:
    """Of each stage that is read: its fingerprint, and its wandb run where it had one."""
    return {
        name: {"fingerprint": fingerprint, "wandb": _read_note(lineage.folders[name])}
        for name, fingerprint in lineage.inputs.items()
    }


def _new_note(folder: Path, settings: WandbSettings, lineage: Lineage) -> dict[str, Any]:
    """Name a run: by the run folder's own name, and by chance, so that the same stage made once more is another run."""
    run = f"{lineage.stage}-{lineage.fingerprint[:12]}-{secrets.token_hex(3)}"
    note = {"run": run, "project": settings.project, "entity": settings.entity}
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    write_json(folder / "wandb" / _NOTE, note)
    return note


def _read_note(folder: Path) -> dict[str, Any] | None:
    path = folder / "wandb" / _NOTE
    if not path.is_file():
        return None
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return note
