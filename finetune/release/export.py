"""Merged models for other programs: `finetune export`. Each export is a folder with its own manifest, proven first.

gguf: one file for llama.cpp (to_gguf.py), read back and compared (gguf_check.py). ollama: the same with a Modelfile
whose template is the training template (ollama.py). vllm: an adapter or a merged model as vLLM takes it.
awq and gptq: 4-bit checkpoints for vLLM and its like, by auto-round (quantised.py).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.data.tokenizer import Tokenizer
from finetune.durable import require_space
from finetune.errors import InputError
from finetune.families.base import Family
from finetune.families.detect import resolve
from finetune.plan.base_files import read_json
from finetune.plan.manifest import FILE, check_files, read_manifest
from finetune.release import quantised
from finetune.release.folder import make_folder
from finetune.release.gguf_check import prove_gguf, told
from finetune.release.lora import CONFIG, open_lora
from finetune.release.ollama import modelfile
from finetune.release.tensors import checkpoint_files, read_places
from finetune.release.to_gguf import (
    LLAMA_CPP_TYPES,
    OWN_TYPES,
    llama_cpp_library,
    quantise_with_llama_cpp,
    source_type,
    write_gguf,
)

Say = Callable[[str], None]

TARGETS = ("gguf", "ollama", "vllm", "awq", "gptq")
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank; it serves adapters up to that."""


def export(
    folder: Path, to: str, out: Path, *, kind: str | None = None, prompts: Path | None = None, say: Say
) -> dict[str, Any]:
    """Export a merged folder (vllm: or a run) into the folder `out`; returns its manifest.

    to: one of TARGETS. kind: the GGUF type, None = q8_0; of awq and gptq the group, g128, g64 or g32, None = the
    largest that fits. prompts: rows to calibrate awq and gptq on. Raises InputError and its kinds, ProofError.
    """
    if prompts is not None and to not in ("awq", "gptq"):
        raise InputError("--prompts is for awq and gptq")
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} has no {FILE}: not a finished run, nor a merged folder")
    check_files(folder, manifest)
    if to == "vllm":
        if kind is not None:
            raise InputError("--type is for gguf and ollama")
        return _vllm(folder, manifest, out, say)
    if manifest["kind"] != "merged":
        raise InputError(
            f"{folder} is a {manifest['kind']} run: merge it first, `finetune merge {folder} --out merged`, and export "
            "the merged folder, which was proven to answer as the run does"
        )
    if manifest["merge"]["task"] == "reward":
        raise InputError(
            f"{folder} is a reward model: {to} is for models that write text, and has no place for its head"
        )
    if to in ("awq", "gptq"):
        return _four_bits(folder, manifest, to, out, kind, prompts, say)
    return _gguf(folder, manifest, to, out, kind or "q8_0", say)


def _gguf(folder: Path, manifest: Mapping[str, Any], to: str, out: Path, kind: str, say: Say) -> dict[str, Any]:
    if kind not in OWN_TYPES and kind not in LLAMA_CPP_TYPES:
        raise InputError(f"--type {kind}: there are {', '.join((*OWN_TYPES, *LLAMA_CPP_TYPES))}")
    if kind in LLAMA_CPP_TYPES:
        llama_cpp_library(kind)  # before anything is written
    family = _family(folder, manifest)
    name = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', str(manifest['name'])).strip('-')}-{kind}.gguf"
    size = sum(entry["size"] for entry in manifest["files"].values())
    require_space(out.absolute(), 2 * size + 2**24, "the exported model")

    def fill(part: Path) -> Mapping[str, Any]:
        if kind in OWN_TYPES:
            write_gguf(folder, part / name, kind, manifest)
        else:
            whole = part / "whole.gguf"
            write_gguf(folder, whole, source_type(folder), manifest)
            quantise_with_llama_cpp(whole, part / name, kind)
            whole.unlink()
        proof = prove_gguf(folder, part / name, kind, family)
        say(f"proof: {told(proof)}")
        if to == "ollama":
            system = manifest["recipe"]["model"]["system"]
            (part / "Modelfile").write_text(modelfile(folder, name, family, system), encoding="utf-8")
        for path in (*folder.glob("LICEN[SC]E*"), *folder.glob("USE_POLICY*"), *folder.glob("N[oO][tT][iI][cC][eE]*")):
            shutil.copyfile(path, part / path.name)
        return _manifest(to, manifest, proof, {"type": kind, "file": name})

    made = make_folder(out, fill)
    say(f"exported: {out / name}, {(out / name).stat().st_size / 2**20:,.1f} MiB")
    if to == "ollama":
        say(f"use it:   cd {out} && ollama create {str(manifest['name']).split('/')[0].lower()} -f Modelfile")
    return made


def _four_bits(
    folder: Path, manifest: Mapping[str, Any], to: str, out: Path, kind: str | None, prompts: Path | None, say: Say
) -> dict[str, Any]:
    quantised.require_auto_round(to)
    if kind is not None and kind not in (known := [f"g{group}" for group in quantised.GROUPS]):
        raise InputError(f"--type {kind}: for {to} there are {', '.join(known)}")
    family = _family(folder, manifest)
    size = sum(entry["size"] for entry in manifest["files"].values())
    require_space(out.absolute(), size + 2**24, "the exported model")

    def fill(part: Path) -> Mapping[str, Any]:
        settings, proof = quantised.quantised(
            folder, manifest, to, part, family, group=None if kind is None else int(kind[1:]), prompts=prompts, say=say
        )
        say(f"proof: {quantised.told(proof)}")
        return _manifest(to, manifest, proof, settings)

    made = make_folder(out, fill)
    say(f"exported: {out}, {sum(entry['size'] for entry in made['files'].values()) / 2**20:,.1f} MiB")
    say(f"use it:   cd {out} && vllm serve . --dtype float16")
    return made


def _vllm(folder: Path, manifest: Mapping[str, Any], out: Path, say: Say) -> dict[str, Any]:
    is_adapter = (folder / CONFIG).is_file()
    if not is_adapter and manifest["kind"] != "merged":
        raise InputError(f"{folder} is a {manifest['kind']} folder: vLLM serves adapters and merged models")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(manifest["name"])).strip("-")
    if is_adapter:
        command, proof = _adapter_for_vllm(folder, manifest, name)
    else:
        command = f"vllm serve . --served-model-name {name}"
        proof = {"tensors": sum(len(read_places(file)) for file in checkpoint_files(folder))}
    size = sum(entry["size"] for entry in manifest["files"].values())
    require_space(out.absolute(), size + 2**24, "the exported model")

    def fill(part: Path) -> Mapping[str, Any]:
        for file in manifest["files"]:
            if "/" not in file and not file.endswith((".jsonl", ".png", ".html")):
                shutil.copyfile(folder / file, part / file)
        return _manifest("vllm", manifest, {**(manifest.get("proof") or {}), **proof}, {"command": command})

    made = make_folder(out, fill)
    say(f"exported: {out}")
    say(f"use it:   cd {out} && {command}")
    if is_adapter and (held := manifest["recipe"]["model"]["load_in"]) == "nf4":
        say(f"          (trained on the base in {held}: --quantization bitsandbytes has vLLM hold it in 4 bits too)")
    return made


def _adapter_for_vllm(folder: Path, manifest: Mapping[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """The command that serves an adapter. Raises InputError for what vLLM's LoRA layers cannot do."""
    lora = open_lora(folder)
    way_out = f"merge it (`finetune merge {folder} --out merged`) and export the merged folder"
    if lora.is_reward:
        raise InputError(f"{folder} is a reward adapter, whose head vLLM does not load: {way_out}")
    if lora.config.get("use_dora"):
        raise InputError(f"{folder} is a DoRA adapter, which vLLM does not serve: {way_out}")
    if lora.whole:
        raise InputError(f"{folder} has whole modules ({sorted(lora.whole)[0]}), which vLLM does not load: {way_out}")
    rank = max(a.shape[0] for a, _, _ in lora.updates.values())
    if rank > VLLM_RANKS[-1]:
        raise InputError(f"{folder} has rank {rank}, vLLM serves up to {VLLM_RANKS[-1]}: {way_out}")
    limit = next(allowed for allowed in VLLM_RANKS if allowed >= rank)
    base = lora.config.get("base_model_name_or_path")
    command = (
        f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules {name}=. --tokenizer . "
        "--generation-config ."
    )
    if (folder / "chat_template.jinja").is_file():
        command += " --chat-template chat_template.jinja"
    return command, {"rank": rank, "layers": len(lora.updates)}


def _family(folder: Path, manifest: Mapping[str, Any]) -> Family:
    config = read_json(folder / "config.json") or {}
    return resolve(config, Tokenizer.load(folder).special_tokens, manifest["family"]["template"]).family


def _manifest(
    to: str, source: Mapping[str, Any], proof: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "name": source["name"],
        "kind": to,
        "base": source["base"],
        "family": source["family"],
        "recipe": source["recipe"],
        "export": dict(settings),
        "made_from": [source],
        "proof": proof,
    }
