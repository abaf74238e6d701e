"""What a merge is made of: the runs or merged folders, their base, and how they become one; checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.families.detect import resolve
from finetune.model.base import Precision, choose_device, choose_precision
from finetune.plan.base_files import read_json
from finetune.plan.manifest import check_files, read_manifest
from finetune.plan.run_base import find_base
from finetune.recipe.settings import ModelSettings
from finetune.release.lora import Lora, open_lora
from finetune.release.merge_weights import How, Into, Method
from finetune.release.tensors import checkpoint_files, read_places

Say = Callable[[str], None]


@dataclass(frozen=True)
class MergeSettings:
    """How to merge. weights: one a run, None = equal, of sum 1. into: auto = the values that were trained on.

    density: share of a change's values that ties and dare keep. rank: of svd, None = the largest of the adapters'.
    bound: the largest mean KL (reward models: relative difference of scores) from the model as it was trained; None =
    by precision. proof: auto = the whole model where it fits into memory, else sampled tensors.
    """

    method: Method = "linear"
    weights: tuple[float, ...] | None = None
    into: Literal["auto", "original", "dequantised"] = "auto"
    density: float = 0.5
    rank: int | None = None
    seed: int = 0
    bound: float | None = None
    proof: Literal["auto", "model", "tensors"] = "auto"


@dataclass(frozen=True)
class Sources:
    """runs: what is merged. files: where the base's tensors, config and licence lie. precision: of the training."""

    folders: Sequence[Path]
    manifests: Sequence[Mapping[str, Any]]
    model: ModelSettings
    base: Path
    config: Mapping[str, Any]
    loras: Sequence[Lora]
    family: Family
    tokenizer: Tokenizer
    precision: Precision
    device: torch.device
    are_models: bool


def read_sources(runs: Sequence[Path], base: str | None, say: Say) -> Sources:
    """Runs and base, whole and fitting to each other. base: if it is not where the run had it. Raises InputError."""
    manifests = []
    for run in runs:
        if (manifest := read_manifest(run)) is None:
            raise InputError(f"{run} has no manifest.json: not the folder of a finished run")
        check_files(run, manifest)
        manifests.append(manifest)
    are_models = manifests[0]["kind"] == "merged"
    if any((manifest["kind"] == "merged") != are_models for manifest in manifests):
        raise InputError(
            "adapters and merged models cannot be mixed: merge the adapter first, then slerp the two models"
        )
    for manifest in manifests[1:]:
        if manifest["base"]["digest"] != manifests[0]["base"]["digest"]:
            raise InputError(
                f"{manifest['name']} and {manifests[0]['name']} have different bases "
                f"({manifest['base']['name']}, {manifests[0]['base']['name']}): their weights cannot be mixed"
            )
        if manifest["family"]["template"] != manifests[0]["family"]["template"]:
            raise InputError(
                f"{manifest['name']} was trained with the template {manifest['family']['template']}, "
                f"{manifests[0]['name']} with {manifests[0]['family']['template']}: one model cannot answer to both"
            )
    if are_models:
        model = ModelSettings.model_validate(manifests[0]["recipe"]["model"])
        folder = runs[0]
        config: Mapping[str, Any] = read_json(runs[0] / "config.json") or {}
        loras = [_as_change(run, first=run == runs[0]) for run in runs]
    else:
        model, files = find_base(runs[0], manifests[0], base, say)
        folder, config = files.folder, files.config
        loras = [open_lora(run) for run in runs]
        if len({lora.is_reward for lora in loras}) > 1:
            raise InputError("a reward model and an adapter that writes text cannot be merged into one model")
    tokenizer = Tokenizer.load(runs[0])
    family = resolve(config, tokenizer.special_tokens, manifests[0]["family"]["template"]).family
    device = choose_device("auto")
    precision = choose_precision(model.load_in, model.compute, device)
    if recorded := (manifests[0].get("resolved") or {}).get("compute"):
        precision = Precision(model.load_in, getattr(torch, recorded))
    return Sources(runs, manifests, model, folder, config, loras, family, tokenizer, precision, device, are_models)


def _as_change(folder: Path, *, first: bool) -> Lora:
    """A merged model as a change of another: of the first one, nothing."""
    places = {} if first else {name: p for file in checkpoint_files(folder) for name, p in read_places(file).items()}
    return Lora(folder, {}, {}, places, is_model=True)


def choose_how(sources: Sources, settings: MergeSettings, say: Say) -> How:
    """The settings, resolved for these sources. Raises InputError for what makes no sense with them."""
    count, method = len(sources.folders), settings.method
    weights = settings.weights or (1.0 / count,) * count
    if len(weights) != count:
        raise InputError(f"--weights has {len(weights)} numbers for {count} runs: give one a run")
    if len(set(sources.folders)) < count:
        raise InputError("the same run is given twice: change its weight instead")
    if method == "slerp" and count != 2:
        raise InputError(f"--method slerp goes from one model to another: two runs, not {count}")
    if method == "slerp" and not (min(weights) >= 0 and sum(weights) > 0):
        raise InputError("--method slerp needs weights that are not negative")
    if method in ("svd", "ties", "dare") and count == 1:
        raise InputError(f"--method {method} makes one change of several: give two runs or more")
    if sources.are_models and method != "slerp":
        raise InputError("merged models are mixed by --method slerp; the other methods mix the adapters themselves")
    if sources.loras[0].is_reward and method not in ("linear", "cat"):
        raise InputError(f"--method {method} is for models that write text; reward models are averaged (linear)")
    if method == "svd" and any(lora.config.get("use_dora") for lora in sources.loras):
        raise InputError("--method svd: a DoRA adapter is no low-rank change; use linear, ties or dare")
    if not 0 < settings.density <= 1:
        raise InputError(f"--density {settings.density} is no share: more than 0, at most 1")
    load_in = sources.precision.load_in
    into: Into = "dequantised" if settings.into == "auto" and load_in == "nf4" else "original"
    if settings.into != "auto":
        into = settings.into
    if sources.are_models:
        into = "original"
    elif into == "dequantised" and load_in != "nf4":
        raise InputError(
            f"--into dequantised: the run's base was held in {load_in}, so there are no 4-bit values; use original"
        )
    elif settings.into == "auto" and load_in == "nf4":
        say("into the dequantised base, whose values the adapter was trained on (--into original: the checkpoint's)")
    return How(
        into, method, tuple(weights), settings.density, settings.rank, settings.seed, sources.precision.compute,
        sources.device,
    )  # fmt: skip
