"""Merge adapters into their base, proven: `finetune merge`.

Read runs and base, plan the files, write them tensor by tensor into `<out>.part`, load the result by plain
transformers, compare it with what was trained, and only then finish the folder. A merge that answers otherwise than
it should is refused with the figures, and nothing is left of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finetune.data.tokenizer import Tokenizer
from finetune.durable import require_space
from finetune.errors import InputError, ProofError
from finetune.families.base import Family
from finetune.families.detect import resolve
from finetune.model.base import Precision, choose_device, choose_precision
from finetune.plan.base_files import read_json
from finetune.plan.manifest import check_files, read_manifest
from finetune.plan.run_base import find_base
from finetune.recipe.settings import ModelSettings
from finetune.release import merge_proof as proof
from finetune.release.folder import make_folder
from finetune.release.lora import Lora, open_lora
from finetune.release.merge_weights import How, Into, Merging, Method, plan_merge
from finetune.release.proof_rows import fixed_rows, user_rows
from finetune.release.tensors import SINGLE, checkpoint_files, read_places, write_file, write_index

Say = Callable[[str], None]

_RUN_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*")
_QUANTISED = ("nf4", "int8")


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
class _Sources:
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


def merge(
    runs: Sequence[Path],
    out: Path,
    settings: MergeSettings,
    *,
    prompts: Path | None = None,
    base: str | None = None,
    say: Say,
) -> dict[str, Any]:
    """Merge finished runs (or, by slerp, two merged folders) into `out`; returns its manifest.

    prompts: the user's held-out rows, compared too. base: where the base is, if not where the run had it. Raises
    InputError and its kinds, ProofError with the figures.
    """
    sources = _read(runs, base, say)
    how = _how(sources, settings, say)
    merging = plan_merge(sources.base, sources.config, sources.loras, how)
    size = sum(entry.size for entry in merging.entries.values())
    require_space(out.absolute(), size + 2**24, "the merged model")
    rows = fixed_rows(sources.manifests, sources.family, sources.tokenizer, int(sources.config["vocab_size"]))
    if prompts is not None:
        rows += user_rows(prompts, sources.family, sources.tokenizer, sources.model.system, say)
    say(f"{len(merging.entries)} tensors, {size / 2**20:,.0f} MiB, into the {how.into} base, by {how.method}")

    def fill(part: Path) -> Mapping[str, Any]:
        for file, entries in merging.files.items():
            write_file(part / file, entries, merging.rounded)
        if list(merging.files) != [SINGLE]:
            write_index(part, merging.files)
        _write_small_files(part, sources, merging)
        found = _prove(part, sources, merging, settings, rows, say)
        return _manifest(sources, merging, found)

    manifest = make_folder(out, fill)
    say(f"merged: {out}")
    return manifest


def _read(runs: Sequence[Path], base: str | None, say: Say) -> _Sources:
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
    return _Sources(runs, manifests, model, folder, config, loras, family, tokenizer, precision, device, are_models)


def _as_change(folder: Path, *, first: bool) -> Lora:
    """A merged model as a change of another: of the first one, nothing."""
    places = {} if first else {name: p for file in checkpoint_files(folder) for name, p in read_places(file).items()}
    return Lora(folder, {}, {}, places, is_model=True)


def _how(sources: _Sources, settings: MergeSettings, say: Say) -> How:
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


def _write_small_files(part: Path, sources: _Sources, merging: Merging) -> None:
    """config.json, tokenizer, template and generation settings, and the licence texts that lie with the base."""
    run = sources.folders[0]
    generation = read_json(run / "generation_config.json") or {}
    config = dict(sources.config)
    config |= {key: value for key, value in generation.items() if key in config or key == "pad_token_id"}
    config["tie_word_embeddings"] = merging.tied
    if merging.is_reward:
        config |= {
            "architectures": ["LlamaForSequenceClassification"],
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
        }
    _write_json(part / "config.json", config)
    if not merging.is_reward:
        _write_json(
            part / "generation_config.json", (read_json(sources.base / "generation_config.json") or {}) | generation
        )
    for name in _RUN_FILES:
        if (run / name).is_file():
            shutil.copyfile(run / name, part / name)
    for pattern in _LICENCE_FILES:
        for path in sources.base.glob(pattern):
            shutil.copyfile(path, part / path.name)


def _prove(
    part: Path, sources: _Sources, merging: Merging, settings: MergeSettings, rows: proof.Rows, say: Say
) -> dict[str, Any]:
    compute, reward, device = sources.precision.compute, merging.is_reward, sources.device
    fits = proof.fits_in_memory(merging, compute, device)
    if settings.proof == "tensors" or (settings.proof == "auto" and not fits):
        found = proof.prove_tensors(part, merging, settings.seed)
        say(
            f"proof: {found['tensors']} of {found['of']} tensors, read back, are base and adapter (off by "
            f"{found['largest_relative']:.2g}); the model as a whole was not loaded"
            + ("" if fits else ": it does not fit into this machine's memory")
        )
        return found
    quantised = sources.precision.load_in in _QUANTISED
    single = len(sources.loras) == 1 and merging.how.weights == (1.0,) and not sources.are_models
    dtype = proof.bound_of(merging, compute)
    rounding = proof.allowed(dtype, reward)
    figures: dict[str, Any] = {}
    model = proof.load_merged(part, reward, compute if single else torch.float32, device)
    answers = proof.answers(model, rows, reward)
    if single:
        run = sources.folders[0]
        if quantised and merging.how.into == "original":
            # Written rightly? Against the same values, unmerged. As trained? Against the 4-bit base, told apart.
            held = Precision("bf16" if dtype == torch.bfloat16 else "fp32", compute)
            unmerged = proof.as_trained(sources.base, run, held, device, rows, reward)
            figures["unmerged"] = _check(part, unmerged, answers, rounding, "the original base with the adapter")
        trained = proof.as_trained(sources.base, run, sources.precision, device, rows, reward)
        drift = proof.SCORE_QUANTISED if reward else proof.KL_QUANTISED
        bound = drift if "unmerged" in figures else rounding
        if sources.precision.load_in == "nf4":
            options = {merging.how.into: proof.differ(trained, answers)}
            other: Into = "original" if merging.how.into == "dequantised" else "dequantised"
            proof.refill(model, merging.with_into(other), exact=False)
            options[other] = proof.differ(trained, proof.answers(model, rows, reward))
            for into, difference in options.items():
                say(f"into the {into} base: {difference}, from the adapter on its 4-bit base")
            figures["options"] = {into: proof.to_json(difference) for into, difference in options.items()}
        what = "base and adapter as they were trained"
        bound = settings.bound if settings.bound is not None else bound
        figures["as_trained"] = _check(part, trained, answers, bound, what)
        compared = "as trained"
    else:
        proof.refill(model, merging, exact=True)
        exact = proof.answers(model, rows, reward)
        bound = settings.bound if settings.bound is not None else proof.allowed(dtype, reward)
        figures["formula"] = _check(part, exact, answers, bound, "the formula in float32")
        compared = "the formula in float32"
        for run, manifest in zip(sources.folders, sources.manifests, strict=True):
            if not sources.are_models:
                alone = proof.as_trained(sources.base, run, sources.precision, device, rows, reward)
                figures.setdefault("from_each", {})[manifest["name"]] = proof.to_json(proof.differ(alone, answers))
    first = next(iter(figures[key] for key in ("as_trained", "formula") if key in figures))
    say(f"proof: {len(rows)} rows, compared with {compared}: {first['told']}")
    return {
        "compared": compared,
        "rows": len(rows),
        "positions": sum(map(len, rows)),
        "bound": bound,
        **figures,
        **_last_row(rows, answers, reward),
        "compute": str(compute if single else torch.float32).removeprefix("torch."),
    }


def _check(part: Path, reference: Any, found: Any, bound: float, what: str) -> dict[str, Any]:
    """The difference as JSON. Raises ProofError beyond the bound."""
    difference = proof.differ(reference, found)
    if not proof.size(difference) <= bound:
        raise ProofError(
            f"the merged model is not {what}: {difference}; at most {bound:g} is allowed. Nothing was released. "
            "Try the other --into, or allow more with --bound"
        )
    return {**proof.to_json(difference), "told": str(difference)}


def _last_row(rows: proof.Rows, answers: Sequence[torch.Tensor], reward: bool) -> dict[str, Any]:
    """What `finetune verify` compares: the merged model's own answer to the last row."""
    if reward:
        return {"last_row_ids": list(rows[-1]), "scores": [float(score) for score in answers]}
    top = answers[-1][-1].topk(min(8, answers[-1].shape[-1]))
    return {
        "last_row_ids": list(rows[-1]),
        "last_row_top_ids": top.indices.tolist(),
        "last_row_top_logprobs": top.values.tolist(),
    }


def _manifest(sources: _Sources, merging: Merging, found: Mapping[str, Any]) -> dict[str, Any]:
    first, how = sources.manifests[0], merging.how
    return {
        "name": " + ".join(str(manifest["name"]) for manifest in sources.manifests),
        "kind": "merged",
        "base": first["base"],
        "family": first["family"],
        "recipe": first["recipe"],
        "merge": {
            "task": "reward" if merging.is_reward else "text",
            "into": how.into,
            "method": how.method,
            "weights": list(how.weights),
            "density": how.density if how.method in ("ties", "dare") else None,
            "rank": how.rank,
            "seed": how.seed if how.method == "dare" else None,
            "tied": merging.tied,
        },
        "made_from": list(sources.manifests),
        "proof": found,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
