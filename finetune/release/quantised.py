"""`finetune export --to awq|gptq`: 4-bit checkpoints, written by auto-round and proven by reading them another way.

The linear layers of the blocks are held in 4 bits; words, norms and head stay as they are. Without calibration rows
each weight is rounded to the nearest of 16 steps (AWQ: from the smallest to the largest of its group; GPTQ: symmetric,
which its fastest kernels need); with --prompts, AutoRound learns which way to round. "awq" and "gptq" name what the
files look like, for the programs that load them: the algorithms of those names are not run.

Proof: every packed tensor is unpacked by the published layout (packed.py) and compared with the merged weight; all
other tensors are equal; the unpacked model's next-token distributions are compared with the merged model's; and where
auto-round-lib is installed, its CPU kernels load the folder in a new process and must answer as the unpacked weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune.data.tokenizer import Tokenizer
from finetune.durable import write_json
from finetune.errors import FinetuneError, InputError, ProofError
from finetune.families.base import Family
from finetune.plan.base_files import read_json
from finetune.release.merge_proof import Difference, differ, load_merged, log_probs
from finetune.release.packed import PARTS, unpack
from finetune.release.proof_rows import fixed_rows, user_rows
from finetune.release.tensors import INDEX, Place, checkpoint_files, read_places

Say = Callable[[str], None]

GROUPS = (128, 64, 32)
"""Inputs that share a scale; vLLM's kernels know these."""
RELATIVE_ALLOWED = 0.3
"""Largest relative error (Frobenius norm) of a layer. On normally distributed weights 4 bits cost about 0.1; a wrong
order of rows costs 1.4."""
KERNEL_KL = 1e-3
"""Mean KL, nats a token, that the CPU kernels may have from the unpacked weights: the same, added up otherwise."""
KL_ALLOWED = 0.5
"""Mean KL of the 4-bit model from the merged one, nats a token. Our choice: beyond it, it is another model. The smaller
a model, the more 4 bits change it."""
ITERATIONS = 200  # auto-round's own default
_BLOCKS, _BLOCK_TOKENS, _FEWEST = 128, 512, 8
_MISSING = (
    "--to {form} needs auto-round, which is not installed: pip install 'finetune[quantise]'; or export to gguf with "
    "--type q4_k_m; or let vLLM serve the adapter on a 4-bit base"
)
_STAYS = (".jsonl", ".png", ".html", ".safetensors")


def quantised(
    folder: Path, manifest: Mapping[str, Any], form: str, part: Path, family: Family, *,
    group: int | None, prompts: Path | None, say: Say,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Write the merged `folder` in 4 bits into `part`; returns (settings, proof) for the manifest.

    form: "awq" or "gptq". group: one of GROUPS; None = the largest that all layers allow. prompts: the user's rows, for
    AutoRound; None = rounding to nearest. Raises InputError for what cannot be done, ProofError, FinetuneError.
    """
    require_auto_round(form)
    tokenizer, config = Tokenizer.load(folder), read_json(folder / "config.json") or {}
    merged = _places(folder)
    group, kept = _choose_group(merged, group)
    _require_memory(merged)
    system = manifest["recipe"]["model"]["system"]
    blocks = [] if prompts is None else _blocks(user_rows(
        prompts, family, tokenizer, system, say, most=_BLOCKS, tokens=_BLOCK_TOKENS
    ), prompts)  # fmt: skip
    settings = {
        "bits": 4,
        "group": group,
        "symmetric": form == "gptq",
        "rounding": "AutoRound" if blocks else "nearest",
        "iterations": ITERATIONS if blocks else 0,
        "calibration_tokens": sum(map(len, blocks)),
        "auto_round": version("auto-round"),
        "kept": kept,
    }
    if kept:
        say(f"{len(kept)} layers are not quantised, their widths being no multiples of 32: {kept[0]} and more")
    _write(folder, part, form, settings, blocks, int(manifest["recipe"]["seed"]), config)
    for file in manifest["files"]:
        if "/" not in file and not file.endswith(_STAYS) and file not in (INDEX, "config.json"):
            shutil.copyfile(folder / file, part / file)
    rows = fixed_rows([manifest], family, tokenizer, int(config["vocab_size"]))
    return settings, prove(folder, part, form, group, rows)


def require_auto_round(form: str) -> None:
    """Raises InputError where auto-round is not installed."""
    if importlib.util.find_spec("auto_round") is None:
        raise InputError(_MISSING.format(form=form))


def prove(folder: Path, out: Path, form: str, group: int, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Compare the quantised folder `out` with the merged `folder`. rows: token ids. Raises ProofError."""
    merged, found = _places(folder), _places(out)
    packed = sorted(name.removesuffix(".qweight") for name in found if name.endswith(".qweight"))
    config = read_json(out / "config.json") or {}
    expected = set(merged) - {f"{layer}.weight" for layer in packed}
    if odd := expected ^ {name for name in found if name.rpartition(".")[2] not in PARTS}:
        raise ProofError(f"{sorted(odd)[0]} is in {folder} or in what auto-round wrote, not in both")
    for name in expected:
        if not torch.equal(merged[name].read().to(found[name].dtype), found[name].read()):
            raise ProofError(f"{name} was not to be quantised, and is not what it was in {folder}")
    model = load_merged(folder, False, torch.float32, torch.device("cpu"))
    theirs = log_probs(model, rows)
    weights, worst = dict(model.named_parameters()), 0.0
    for layer in packed:
        parts = {part: found[f"{layer}.{part}"].read() for part in PARTS if f"{layer}.{part}" in found}
        held = unpack(parts, form, group).weight_OI
        was = merged[f"{layer}.weight"].read().float()
        off = float((held - was).norm() / was.norm().clamp(min=1e-30)) if held.shape == was.shape else float("inf")
        if not off <= RELATIVE_ALLOWED:
            raise ProofError(f"{layer}, unpacked, is off by {off:.3g} of its size; {RELATIVE_ALLOWED:g} is allowed")
        worst = max(worst, off)
        with torch.no_grad():
            weights[f"{layer}.weight"].copy_(held)
    ours = log_probs(model, rows)
    del model, weights
    change = differ(theirs, ours)
    assert isinstance(change, Difference)
    if not change.mean_kl <= KL_ALLOWED:
        raise ProofError(
            f"in 4 bits the model answers otherwise than {folder}: {change}; {KL_ALLOWED:g} is allowed. A smaller "
            "group (--type g32), AutoRound (--prompts FILE) or 8 bits (--to gguf) keep more of it"
        )
    proof = {
        "layers": len(packed),
        "tensors": len(found),
        "largest_relative": worst,
        "positions": sum(map(len, rows)),
        **asdict(change),
        "kernels": _ask_kernels(out, rows, ours, len(packed)),
    }
    if len(packed) == 0 or config.get("quantization_config", {}).get("quant_method") != form:
        raise ProofError(f"what auto-round wrote is no {form} checkpoint: {len(packed)} layers are in 4 bits")
    return proof


def told(proof: Mapping[str, Any]) -> str:
    """One line for the user."""
    line = (
        f"{proof['layers']} layers unpacked (off by at most {proof['largest_relative']:.2g}); from the merged model "
        f"mean KL {proof['mean_kl']:.2g}, largest {proof['max_kl']:.2g} nats a token, top-1 {proof['top1']:.2%} of "
        f"{proof['positions']}"
    )
    if (kernels := proof["kernels"]) is None:
        return f"{line}; auto-round-lib is not installed, so no kernel of this format was asked"
    return (
        f"{line}; auto-round-lib {kernels['version']} answers as the unpacked weights do (KL {kernels['mean_kl']:.2g})"
    )


def _ask_kernels(out: Path, rows: Sequence[Sequence[int]], ours: list[Tensor], layers: int) -> dict[str, Any] | None:
    if importlib.util.find_spec("auto_round_kernel") is None:
        return None
    answers = out / "answers.safetensors.tmp"
    told_of = answers.with_suffix(".json")
    _run({"do": "answer", "folder": str(out), "rows": [list(row) for row in rows], "out": str(answers)}, out)
    found, counted = load_file(answers), json.loads(told_of.read_text(encoding="utf-8"))["layers"]
    answers.unlink()
    told_of.unlink()
    difference = differ(ours, [found[str(index)] for index in range(len(rows))])
    assert isinstance(difference, Difference)
    if counted != layers or not difference.mean_kl <= KERNEL_KL:
        raise ProofError(
            f"loaded by transformers with auto-round-lib, {counted} of {layers} layers are in 4 bits, and the answers "
            f"differ from the unpacked weights': {difference}"
        )
    return {"version": version("auto-round-lib"), **asdict(difference)}


def _write(
    folder: Path, part: Path, form: str, settings: Mapping[str, Any], blocks: list[list[int]], seed: int,
    config: Mapping[str, Any],
) -> None:  # fmt: skip
    """Let auto-round write below part, and take its weights and its quantization_config; the rest is the folder's."""
    work = part / "auto-round"
    asked = {key: settings[key] for key in ("group", "symmetric", "iterations")}
    _run({
        "do": "quantise", "folder": str(folder.absolute()), "out": str(work), "format": f"auto_{form}",
        "blocks": blocks, "seed": seed, **asked,
    }, part)  # fmt: skip
    written = [path.parent for path in work.rglob("config.json")]
    if len(written) != 1:
        raise ProofError(f"auto-round wrote {len(written)} checkpoints")
    for path in (*checkpoint_files(written[0]), *written[0].glob(INDEX)):
        path.rename(part / path.name)
    quantization = (read_json(written[0] / "config.json") or {})["quantization_config"]
    # The kernels compute in 16 bits; the tensors that stay wider are cast when they are loaded.
    write_json(part / "config.json", {**config, "dtype": "float16", "quantization_config": quantization})
    shutil.rmtree(work)


def _run(job: Mapping[str, Any], part: Path) -> None:
    """Do a job of auto_round_job.py, off the hub. Its progress bars go to stderr. Raises FinetuneError."""
    asked = part / "job.json.tmp"
    asked.write_text(json.dumps(job), encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "AR_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "finetune.release.auto_round_job", str(asked)]
    code = subprocess.run(command, env={**os.environ, **offline}, check=False).returncode
    asked.unlink()
    if code != 0:
        raise FinetuneError(f"auto-round stopped with exit code {code}; what it said is above")


def _places(folder: Path) -> dict[str, Place]:
    return {name: place for file in checkpoint_files(folder) for name, place in read_places(file).items()}


def _choose_group(merged: Mapping[str, Place], asked: int | None) -> tuple[int, list[str]]:
    """The group size, and the layers of the blocks that cannot be packed. auto-round packs multiples of 32."""
    layers = {
        name.removesuffix(".weight"): place.shape
        for name, place in merged.items()
        if ".layers." in name and len(place.shape) == 2
    }
    fitting = {name: shape for name, shape in layers.items() if shape[0] % 32 == shape[1] % 32 == 0}
    if not fitting:
        raise InputError(
            "no layer has widths that are multiples of 32, and 4-bit kernels take no others: export to gguf"
        )
    possible = [group for group in GROUPS if all(shape[1] % group == 0 for shape in fitting.values())]
    if asked is not None and asked not in possible:
        raise InputError(f"--type g{asked}: the layers allow {', '.join(f'g{group}' for group in possible)}")
    return asked or possible[0], sorted(layers.keys() - fitting.keys())


def _require_memory(merged: Mapping[str, Place]) -> None:
    """The proof holds the model in float32, auto-round in its own dtype and more. Raises InputError."""
    needed = 6 * sum(place.shape[0] * (place.shape[1] if len(place.shape) > 1 else 1) for place in merged.values())
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(f"quantising needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free")


def _blocks(rows: Sequence[Sequence[int]], path: Path) -> list[list[int]]:
    """The rows one after the other, cut into blocks of one length, as AutoRound wants them."""
    stream = [token for row in rows for token in row]
    length = min(_BLOCK_TOKENS, len(stream) // _FEWEST)
    if length < 16:
        raise InputError(
            f"--prompts: {path} has {len(stream)} tokens; AutoRound needs at least {16 * _FEWEST}, thousands are better"
        )
    return [stream[at : at + length] for at in range(0, len(stream) - length + 1, length)][:_BLOCKS]
