"""Finished runs made by hand: a base with one tensor, and manifests as `finetune.execute` writes them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.durable import describe_files
from finetune.plan.base_files import base_digest
from finetune.plan.manifest import write_manifest

META_WORDS = {"llama1": 32000, "llama2": 32000}
COPIES = {
    "llama2": "Llama2_Community_License.txt",
    "llama3": "Llama3_Community_License.txt",
    "llama3.1": "Llama3.1_Community_License.txt",
    "llama4": "Llama4_Community_License.txt",
}
"""What ../shared/licences has."""


def weights(text: str = "w") -> bytes:
    """A safetensors file with one number, and `text` to tell it from others."""
    header = json.dumps({"__metadata__": {"is": text}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header.encode() + struct.pack("<f", 1.0)


def licence_text(shared: Path, id: str) -> str:
    """Meta's text where ../shared has it; of 3.2 and 3.3, which it has not, that of 3.1 with the number changed."""
    if id in COPIES:
        return (shared / "licences" / COPIES[id]).read_text(encoding="utf-8")
    text = (shared / "licences" / COPIES["llama3.1"]).read_text(encoding="utf-8")
    number = id.removeprefix("llama")
    return text.replace("Llama 3.1", f"Llama {number}").replace("LLAMA 3.1", f"LLAMA {number}")


def make_base(folder: Path, *, words: int = 512, licence: str | None = None, readme: str | None = None) -> Path:
    """A base's folder. licence: text of LICENSE; readme: YAML of README.md."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": words, "hidden_size": 8}))
    (folder / "model.safetensors").write_bytes(weights(folder.name))
    if licence is not None:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
        (folder / "USE_POLICY.md").write_text("Use it well.\n")
    if readme is not None:
        (folder / "README.md").write_text(f"---\n{readme}\n---\n# Base\n")
    return folder


def llama(tmp_path: Path, shared: Path, id: str) -> Path:
    """A base of one of Meta's generations, with its licence copy."""
    generation = id if id != "llama4" else "llama3.1"
    return make_base(
        tmp_path / f"base-{id}", words=META_WORDS.get(generation, 128256), licence=licence_text(shared, id)
    )


def make_run(
    runs: Path,
    base: Path,
    stage: str = "sft",
    kind: str = "sft",
    *,
    generation: str = "llama3.1",
    recipe: str = "chat",
    settings: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
    sources: Sequence[Mapping[str, Any]] = (),
    files: Mapping[str, bytes] | None = None,
    base_name: str | None = None,
    revision: str | None = None,
    **more: Any,
) -> Path:
    """A finished run in runs/<recipe>/<stage>-<fingerprint>. inputs: run folders by stage. more: of the manifest."""
    fingerprint = hashlib.sha256(f"{recipe}/{stage}/{base.name}".encode()).hexdigest()
    folder = runs / recipe / f"{stage}-{fingerprint[:12]}"
    folder.mkdir(parents=True)
    name = base_name or str(base)
    if files is None:
        config = {"base_model_name_or_path": name, "r": 4, "lora_alpha": 8, "modules_to_save": None}
        files = {
            "adapter_model.safetensors": weights(f"{recipe}/{stage}"),
            "adapter_config.json": json.dumps(config).encode(),
            "tokenizer.json": b'{"model": {"vocab": {"a": 0}}}',
            "metrics.jsonl": b'{"step": 1, "loss": 2.5}\n',
        }
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    known = {name: json.loads((path / "manifest.json").read_text()) for name, path in (inputs or {}).items()}
    content = {
        "name": f"{recipe}/{stage}",
        "stage": stage,
        "kind": kind,
        "fingerprint": fingerprint,
        "finished": "2026-01-02T03:04:05+00:00",
        "seconds": 61.0,
        "base": {
            "name": name,
            "revision": revision,
            "digest": f"commit:{revision}" if revision else base_digest(base, None),
            "architecture": ["LlamaForCausalLM"],
        },
        "family": {
            "name": f"{generation} on {generation}",
            "template": generation,
            "generation": generation,
            "licence": generation,
            "pad_token": "<pad>",
            "stop_tokens": ["<|eot_id|>"],
        },
        "recipe": {
            "name": recipe,
            "seed": 17,
            "model": {"base": name, "load_in": "nf4", "max_length": 4096},
            "adapter": {"rank": 4, "alpha": 8.0},
            "track": {"wandb": {"project": "p", "mode": "online", "entity": "joanna", "tags": []}},
            "stages": {stage: {"kind": kind, "train": {"epochs": 2.0}, **(settings or {})}},
        },
        "overrides": ["stages.sft.train.epochs=2.0"],
        "inputs": {name: manifest["fingerprint"] for name, manifest in known.items()},
        "resolved": {"learning_rate": 0.0002, "total_steps": 8},
        "data": {"sources": list(sources), "rows": 24, "train_rows": 20, "held_out_rows": 4, "tokens": 900},
        "metrics": {"steps": 8, "held_out": 1.25, "last": {"accuracy": 0.75}},
        "proof": {"rows": 4, "max_abs_difference": 0.0, "last_row_ids": [1, 2, 3]},
        "environment": {
            "python": "3.11.7",
            "system": "Linux x86_64",
            "hardware": "1 x NVIDIA H200",
            "libraries": {"torch": "2.13.0", "finetune": "0.1.0"},
        },
        "files": describe_files(folder),
        **more,
    }
    write_manifest(folder, content)
    return folder


def source(name: str = "demo.jsonl", digest: str | None = None, used: int = 24) -> dict[str, Any]:
    """A data source as a report names it."""
    digest = digest or f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    return {"source": name, "format": "messages (detected)", "digest": digest, "rows": 24, "used": used}


def make_rows(runs: Path, base: Path, stage: str = "best", *, text: str = "a", **more: Any) -> Path:
    """A finished reject run, with the rows that its policy wrote."""
    rows = {"rows.jsonl": json.dumps({"prompt": "What?", "completion": text}).encode() + b"\n"}
    return make_run(runs, base, stage, "reject", files=rows, **more)


def make_merged(folder: Path, *sources_: Path, files_: Mapping[str, bytes] | None = None, **more: Any) -> Path:
    """A merged folder, as `finetune merge` leaves it; with other files and another kind, an exported one."""
    manifests = [json.loads((path / "manifest.json").read_text()) for path in sources_]
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "_name_or_path": manifests[0]["base"]["name"]}
    whole = {"model.safetensors": weights("merged"), "config.json": json.dumps(config).encode()}
    for file, content in (files_ or whole).items():
        (folder / file).write_bytes(content)
    first = manifests[0]
    manifest = {
        "name": " + ".join(manifest["name"] for manifest in manifests),
        "kind": "merged",
        **{key: first[key] for key in ("base", "family", "recipe", "environment", "finished", "seconds")},
        "merge": {"into": "original", "method": "linear", "weights": [1.0]},
        "made_from": manifests,
        "proof": {"rows": 4, "told": "KL 1e-6"},
        "files": describe_files(folder),
        **more,
    }
    write_manifest(folder, manifest)
    return folder
