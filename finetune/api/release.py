"""From runs to what others can use: merge, export, publish. The same proofs and the same caution as the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from finetune.api.recipe import PathLike
from finetune.api.runs import Run, RunLike
from finetune.notebook.place import calm


def merge(
    runs: RunLike | Sequence[RunLike],
    out: PathLike,
    *,
    into: Literal["auto", "original", "dequantised"] = "auto",
    method: Literal["linear", "cat", "svd", "ties", "dare", "slerp"] = "linear",
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    rank: int | None = None,
    seed: int = 0,
    prompts: PathLike | None = None,
    base: str | None = None,
    bound: float | None = None,
    proof: Literal["auto", "model", "tensors"] = "auto",
) -> Run:
    """Merge a run's adapter (or several) into its base: a checkpoint that needs no peft, compared with the model as it
    was trained before it gets its name. Returns the merged folder as a Run. The options are those of `finetune merge`.

    Raises InputError, and ProofError where it does not answer as what was trained.

        merged = ft.merge(results["dpo"], "merged")
    """
    calm()
    from finetune.release.merge import merge as merge_runs
    from finetune.release.merge_sources import MergeSettings

    folders = [Path(runs)] if isinstance(runs, Run | str | os.PathLike) else [Path(run) for run in runs]
    settings = MergeSettings(
        method=method,
        weights=None if weights is None else tuple(weights),
        into=into,
        density=density,
        rank=rank,
        seed=seed,
        bound=bound,
        proof=proof,
    )
    merge_runs(folders, Path(out), settings, prompts=_path(prompts), base=base, say=print)
    return Run(out)


def export(
    run: RunLike,
    to: Literal["gguf", "ollama", "vllm", "awq", "gptq"],
    out: PathLike,
    *,
    type: str | None = None,
    prompts: PathLike | None = None,
) -> Run:
    """Export a merged folder for another program (vllm: an adapter too). type: of the numbers, as `--type` takes it.

    Raises InputError and ProofError.

        ft.export(merged, "gguf", "chat-gguf", type="q8_0")
    """
    calm()
    from finetune.release.export import export as export_folder

    kind = None if type is None else type.lower()
    export_folder(Path(run), to, Path(out), kind=kind, prompts=_path(prompts), say=print)
    return Run(out)


def publish(
    run: RunLike,
    to: str,
    *,
    private: bool = True,
    confirm: bool = False,
    dry_run: PathLike | None = None,
    bases: Sequence[PathLike] = (),
    base_id: str | None = None,
    licence: str | None = None,
    written_by: Sequence[str] = (),
    collection: str | None = None,
    samples: int = 3,
    allow: Sequence[str] = (),
    runs: PathLike = "runs",
) -> list[str]:
    """Publish a run, or a merged or exported folder, on the Hugging Face Hub. Private unless told otherwise.

    Everything is checked, composed and read for secrets first, and shown. Nothing is uploaded unasked: a terminal is
    asked; elsewhere, as in a notebook, look first, and call again with confirm=True. dry_run: write what would go up
    into this folder, and ask no network. The other options are those of `finetune publish`.

    Returns the addresses of what was uploaded; none where nothing was. Raises InputError and its kinds.

        ft.publish(results["dpo"], "me/Llama-3.2-1B-chat", dry_run="release")
        ft.publish(results["dpo"], "me/Llama-3.2-1B-chat")                  # shows, uploads nothing
        ft.publish(results["dpo"], "me/Llama-3.2-1B-chat", confirm=True)
    """
    calm()
    from finetune.release.publish import PublishSettings
    from finetune.release.publish import publish as send

    settings = PublishSettings(
        to=to,
        public=not private,
        bases=tuple(Path(base) for base in bases),
        base_id=base_id,
        licence=licence,
        written_by=tuple(written_by),
        collection=collection,
        samples=samples,
        allowed=tuple(allow),
        runs=Path(runs),
    )
    return send(Path(run), settings, say=print, ask=_asker(confirm), dry_run=_path(dry_run))


def _asker(confirm: bool) -> Callable[[str], bool]:
    """Says yes for who confirmed, asks a terminal, and else says no and how to say yes."""

    def ask(question: str) -> bool:
        if confirm:
            return True
        if sys.stdin is not None and sys.stdin.isatty():
            return input(f"{question} [y/N]: ").strip().lower() in ("y", "yes")
        print(f"{question} To say yes, look at the list above and call again with confirm=True")
        return False

    return ask


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)
