"""Walk a plan: each stage once, locked, resumable, proven, and named only when it is complete.

A run is made in `<folder>.part`: what the stage writes lies there, what it throws away (checkpoints) in `work/` below.
At the end the manifest, with the hash of every file, is written last, the folder is flushed and gets its name in one
rename; only then is `work/` removed. A kill at any moment leaves either an unfinished `.part`, which the next run goes
on with, or a finished run.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from finetune.durable import describe_files, is_disk_full, rename, sync_tree
from finetune.engine.job import Job, Outcome
from finetune.engine.lineage import open_tracking
from finetune.engine.progress import MakeProgress, Progress, make_progress
from finetune.engine.sampling_journal import has_chunks
from finetune.errors import DiskFullError, InputError, RunBusyError
from finetune.model.bases import Bases
from finetune.plan.choose import choose
from finetune.plan.manifest import check_files, read_manifest, write_manifest
from finetune.plan.plan import Plan, PlannedStage, make_plan
from finetune.quiet import calm_libraries, quiet_libraries
from finetune.recipe.load import LoadedRecipe

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "datasets", "finetune")
_PROCESSES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""How torchrun, accelerate launch and the MPIs say how many processes they started."""
_KEPT_FROM_WORK = ("metrics.jsonl", "wandb", "tensorboard")


class Screen(Protocol):
    """What shows a walk while it goes on. `progress` is what a stage's Job is given."""

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        """The walk begins, with these stages ahead."""

    def begin(self, stage: PlannedStage) -> None: ...

    def progress(self, title: str, total: int, done: int) -> Progress: ...

    def end(self, stage: PlannedStage) -> None:
        """The stage is done: just now, or it was already."""

    def close(self) -> None:
        """The walk has ended, also by an error."""


class Lines:
    """No screen of its own: every stage shows its progress by itself. stages: the walk's, as they stood before it."""

    def __init__(self) -> None:
        self.stages: tuple[PlannedStage, ...] = ()

    def open(self, plan: Plan, stages: Sequence[PlannedStage]) -> None:
        self.stages = tuple(stages)

    def begin(self, stage: PlannedStage) -> None:
        pass

    def progress(self, title: str, total: int, done: int) -> Progress:
        return make_progress(title, total, done)

    def end(self, stage: PlannedStage) -> None:
        pass

    def close(self) -> None:
        pass


def run_recipe(
    loaded: LoadedRecipe,
    runs: Path,
    say: Callable[[str], None],
    *,
    kinds: Collection[str] | None = None,
    until: str | None = None,
    begin: str | None = None,
    functions: Mapping[str, Callable[..., float]] | None = None,
    screen: Screen | None = None,
) -> Plan:
    """Run what is not done of a recipe: all of it, or the stages of some kinds and what they read.

    say: shows the user a line. until, begin: the last stage to run, and the first, above which all has to be done.
    functions: checkers of kind function, by the name that the recipe has for them. screen: shows the walk. Returns the
    plan as it stands afterwards. Errors: see finetune.errors.
    """
    _refuse_launchers()
    plan = make_plan(loaded, runs, weights=True)
    stages = choose(plan, kinds=kinds, until=until, begin=begin)
    if plan.base.revision:
        say(f"{plan.base.name} at commit {plan.base.revision}")
    bases, shown = Bases(), screen or Lines()
    with closing(shown):
        shown.open(plan, stages)
        for stage in stages:
            shown.begin(stage)
            run_stage(loaded, plan, stage, runs, say, bases=bases, functions=functions, progress=shown.progress)
            shown.end(stage)
    return make_plan(loaded, runs)


def run_stage(
    loaded: LoadedRecipe,
    plan: Plan,
    stage: PlannedStage,
    runs: Path,
    say: Callable[[str], None],
    *,
    bases: Bases | None = None,
    functions: Mapping[str, Callable[..., float]] | None = None,
    progress: MakeProgress = make_progress,
) -> None:
    """Bring one stage to its finished folder; the stages it reads are finished already."""
    with _place_for(stage.folder), _lock(stage.folder):
        if (manifest := read_manifest(stage.folder)) is not None:
            check_files(stage.folder, manifest)
            shutil.rmtree(stage.folder / "work", ignore_errors=True)
            say(f"{stage.name}: already done, nothing to do: {stage.folder}")
            return
        if stage.folder.exists():
            raise InputError(
                f"{stage.folder} is in the way: it has no manifest, so it is no finished run. Move it away and run the "
                "same command again"
            )
        part, work = stage.part, stage.part / "work"
        with _told_when_full(part):
            work.mkdir(parents=True, exist_ok=True)
        for left in part.iterdir():  # what an interrupted ending wrote is written again
            if left != work:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        job = Job(
            name=stage.name,
            recipe_name=plan.recipe.name,
            fingerprint=stage.fingerprint,
            seed=plan.recipe.seed,
            base=plan.base,
            model=plan.recipe.model,
            adapter=plan.recipe.adapter,
            inputs={name: plan.stage(name).folder for name in stage.inputs},
            out=part,
            work=work,
            cache=runs / ".cache",
            locate=loaded.locate,
            say=lambda line: say(f"{stage.name}: {line}"),
            bases=bases or Bases(),
            functions=functions or {},
            progress=progress,
            tracking=open_tracking(plan, stage, work, say),
        )
        began = time.time()
        with _nothing_left_of_nothing(part, work), _told_when_full(part), job.tracking:
            outcome = _stage_function(stage.kind)(stage.settings, job)
            job.tracking.finish(outcome.results(), outcome.resolved, part)
            _keep(work, part)
            files = describe_files(part, leave_out=[p.relative_to(part).as_posix() for p in work.rglob("*")])
            sync_tree(part)
            write_manifest(part, _manifest(loaded, plan, stage, outcome, files, time.time() - began))
            rename(part, stage.folder)
        shutil.rmtree(stage.folder / "work")
    say(f"{stage.name}: done: {stage.folder}")


def _refuse_launchers() -> None:
    """Several processes would wait for each other's lock, or for each other. Raises InputError before they do."""
    for name in _PROCESSES:
        if (count := os.environ.get(name, "1")).isdigit() and int(count) > 1:
            raise InputError(
                f"started as one of {count} processes ({name}={count}): this version trains in one process on one "
                "device. Start it with plain `finetune`, without torchrun, accelerate launch or mpirun"
            )


@contextmanager
def _place_for(folder: Path) -> Iterator[None]:
    """Make the folder that a run's folder lies in. Raises InputError where that cannot be done."""
    with _told_when_full(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise InputError(
                f"runs cannot be kept in {folder.parent}: {error.strerror}. Give another place with --runs"
            ) from error
        yield


@contextmanager
def _told_when_full(part: Path) -> Iterator[None]:
    """A full disk, in whatever form a library raises it, as one clear error."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_disk_full(error):
            raise DiskFullError(
                f"the disk is full: {part} could not be written. Free some space and run the same command again: "
                "it goes on from the last checkpoint, if there is one"
            ) from error
        raise


@contextmanager
def _nothing_left_of_nothing(part: Path, work: Path) -> Iterator[None]:
    """After an input error, remove the unfinished run, unless it has a checkpoint or samples to go on from."""
    try:
        yield
    except InputError:
        saved = any(path.suffix != ".part" for path in (work / "checkpoints").glob("*-*"))
        if not saved and not has_chunks(work):
            shutil.rmtree(part)
        raise


def _keep(work: Path, part: Path) -> None:
    """Copy, not move: killed before the manifest, the next session goes on from `work` as it was. wandb's logs stay
    behind: it writes to them for as long as the process lives, so a manifest cannot vouch for them."""
    for name in _KEPT_FROM_WORK:
        source = work / name
        if source.is_dir():
            shutil.copytree(source, part / name, ignore=shutil.ignore_patterns("*.log", "logs", "tmp", "latest-run"))
        elif source.is_file():
            shutil.copyfile(source, part / name)


def _stage_function(kind: str) -> Callable[[Any, Job], Outcome]:
    """The function of a stage kind, imported only now: it brings torch with it."""
    quiet_libraries()
    calm_libraries()
    if kind == "sft":
        from finetune.stages.sft import run as sft

        return sft
    if kind == "reward":
        from finetune.stages.reward import run as reward

        return reward
    if kind == "dpo":
        from finetune.stages.dpo import run as dpo

        return dpo
    if kind == "reject":
        from finetune.stages.reject import run as reject

        return reject
    if kind == "ppo":
        from finetune.stages.ppo import run as ppo

        return ppo
    if kind in ("grpo", "rloo"):
        from finetune.stages.trl_online import run as trl_online

        return trl_online
    if kind == "average":
        from finetune.stages.average import run as average

        return average
    raise AssertionError(f"the schema let an unknown kind through: {kind}")


def _manifest(
    loaded: LoadedRecipe,
    plan: Plan,
    stage: PlannedStage,
    outcome: Outcome,
    files: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    return {
        "name": f"{plan.recipe.name}/{stage.name}",
        "stage": stage.name,
        "kind": stage.kind,
        "fingerprint": stage.fingerprint,
        "settings": stage.settings.model_dump(mode="json"),
        "made_of": stage.made_of,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "base": {
            "name": plan.base.name,
            "revision": plan.base.revision,
            "digest": plan.base.digest,
            "architecture": plan.base.config.get("architectures"),
        },
        "family": outcome.family,
        "recipe": plan.recipe.model_dump(mode="json"),
        "overrides": list(loaded.overrides),
        "inputs": {name: plan.stage(name).fingerprint for name in stage.inputs},
        "resolved": outcome.resolved,
        "data": outcome.data,
        "metrics": outcome.metrics,
        "proof": outcome.proof,
        **outcome.extra,
        "environment": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "hardware": _hardware(),
            "libraries": {name: version(name) for name in _LIBRARIES},
        },
        "files": files,
    }


def _hardware() -> str:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores"


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold `<folder>.lock`, so that two processes cannot write one run. The lock dies with its process."""
    path = folder.with_name(folder.name + ".lock")
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise RunBusyError(
                f"another process (pid {owner}) is working on {folder}: wait for it, or stop it (its work is kept)"
            ) from None
        # The last owner removes the file: a lock on a removed file is no lock, so try again with the new one.
        if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
            break
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
