"""Merge adapters into their base, proven: `finetune merge`.

Read runs and base, plan the files, write them tensor by tensor into `<out>.part`, load the result by plain
transformers, compare it with what was trained, and only then finish the folder. A merge that answers otherwise than
it should is refused with the figures, and nothing is left of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune.durable import require_space
from finetune.errors import ProofError
from finetune.model.base import Precision
from finetune.plan.base_files import read_json
from finetune.release import merge_proof as proof
from finetune.release.folder import make_folder
from finetune.release.merge_sources import MergeSettings, Say, Sources, choose_how, read_sources
from finetune.release.merge_weights import Into, Merging, plan_merge
from finetune.release.proof_rows import fixed_rows, user_rows
from finetune.release.tensors import SINGLE, write_file, write_index

_RUN_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*", "Notice*")
_QUANTISED = ("nf4", "int8")


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
    sources = read_sources(runs, base, say)
    how = choose_how(sources, settings, say)
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


def _write_small_files(part: Path, sources: Sources, merging: Merging) -> None:
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
    part: Path, sources: Sources, merging: Merging, settings: MergeSettings, rows: proof.Rows, say: Say
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
        plain = all(not lora.whole and not lora.config.get("use_dora") for lora in sources.loras)
        if plain and merging.how.method in ("linear", "cat") and not sources.are_models:
            held = Precision("bf16" if dtype == torch.bfloat16 else "fp32", compute)
            precision = held if quantised and merging.how.into == "original" else sources.precision
            at_once = proof.together(sources.base, sources.folders, merging.how.weights, precision, device, rows)
            figures["together"] = _check(part, at_once, answers, bound, "the base with all adapters at their weights")
            compared = "all adapters at once, by peft"
        for run, manifest in zip(sources.folders, sources.manifests, strict=True):
            if not sources.are_models:
                alone = proof.as_trained(sources.base, run, sources.precision, device, rows, reward)
                figures.setdefault("from_each", {})[manifest["name"]] = proof.to_json(proof.differ(alone, answers))
    first = next(iter(figures[key] for key in ("as_trained", "together", "formula") if key in figures))
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


def _manifest(sources: Sources, merging: Merging, found: Mapping[str, Any]) -> dict[str, Any]:
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
