"""`finetune merge`: adapters into their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from finetune.errors import InputError


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write the merged model into.")
@click.option(
    "--into",
    type=click.Choice(["auto", "original", "dequantised"]),
    default="auto",
    show_default=True,
    help="The base's own weights, or the 4-bit values that were trained on. auto: what was trained on.",
)
@click.option(
    "--method",
    type=click.Choice(["linear", "cat", "svd", "ties", "dare", "slerp"]),
    default="linear",
    show_default=True,
    help="How several become one.",
)
@click.option("--weights", metavar="W,W,…", help="Weight of each run. Default: equal, of sum 1.")
@click.option("--density", type=float, default=0.5, show_default=True, help="Share that ties and dare keep.")
@click.option("--rank", type=click.IntRange(min=1), help="Rank that svd cuts to. Default: the adapters' largest.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of dare's draw and of sampled proofs.")
@click.option("--prompts", type=click.Path(path_type=Path), help="Held-out rows to prove the merge on, besides ours.")
@click.option("--base", metavar="FOLDER|ID", help="The base, if it is not where the run had it.")
@click.option("--bound", type=float, help="Largest mean KL (nats a token) from the model as trained.")
@click.option(
    "--proof",
    type=click.Choice(["auto", "model", "tensors"]),
    default="auto",
    show_default=True,
    help="Compare the whole model, or sampled tensors where it does not fit into memory.",
)
def merge(
    runs: tuple[Path, ...], out: Path, weights: str | None, prompts: Path | None, base: str | None, **how: Any
) -> None:
    """Merge the adapter of a finished RUN (or of several) into its base: a checkpoint that needs no peft.

    The result is loaded by plain transformers and compared with the model as it was trained before it gets its name.
    Two merged folders can be mixed with --method slerp. Memory: about one tensor and its change, whatever the size.

    \b
    Example:
      finetune merge runs/chat/dpo-0123456789ab --out merged
      finetune merge runs/chat/dpo-0123456789ab --out merged --into original --prompts held_out.jsonl
      finetune merge runs/a/sft-… runs/b/sft-… --out both --method ties --weights 0.7,0.3
    """
    try:
        numbers = None if weights is None else tuple(float(weight) for weight in weights.split(","))
    except ValueError:
        raise InputError(f"--weights {weights}: numbers with commas between, such as 0.7,0.3") from None
    if prompts is not None and not prompts.exists():
        raise InputError(f"--prompts: no such file or folder: {prompts}")

    from finetune.quiet import calm_libraries, quiet_libraries

    quiet_libraries()
    calm_libraries()
    from finetune.release.merge import merge as merge_runs
    from finetune.release.merge_sources import MergeSettings

    merge_runs(runs, out, MergeSettings(weights=numbers, **how), prompts=prompts, base=base, say=click.echo)
