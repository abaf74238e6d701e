"""What a release consists of: which files go up, what is written for them, and nothing else.

Of a run's folder only files that its manifest proves and that are on a short list go up: weights, tokenizer, template,
configuration, pictures. Optimiser states, caches, logs and whatever else lies there stay. Beside them stand what is
written here: the manifest without private paths, the manifests of the lineage, the card, and the licence files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any, Literal

from finetune.durable import require_space
from finetune.durable import sha256 as file_sha256
from finetune.errors import InputError
from finetune.plan.base_files import read_json
from finetune.plan.manifest import FILE, FORMAT
from finetune.release.card import is_reward, write_card
from finetune.release.duties import NOTICE, Duties
from finetune.release.lineage import FOLDER, Lineage, Link, Manifest, Member
from finetune.release.scan import Content, without_private_paths

CARD = "README.md"
_MODEL_FILES = (
    "adapter_model*.safetensors", "adapter_config.json", "model*.safetensors", "model.safetensors.index.json", "*.gguf",
    "Modelfile*", "config.json", "generation_config.json", "quantize_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "*.svg",
)  # fmt: skip
_ROW_FILES = ("*.jsonl", "*.svg")
_LOGS = ("metrics.jsonl", "wandb/*", "work/*")
_SAMPLES = "samples.jsonl"
_LARGEST_BLOB = 2**25
"""Bytes. The hub keeps files above 10 MB, or of binary kinds, as large ones."""
_OWN = (CARD, NOTICE, "LICENSE*", "LICENCE*", "USE_POLICY*", f"{FOLDER}/*")
"""Written anew, so not worth a word when they are left out."""


@dataclass(frozen=True)
class Bundle:
    """files: by their path in the repository. sha256: of each. left_out: of the folder, what does not go up."""

    name: str
    repo_type: Literal["model", "dataset"]
    files: Mapping[str, Content]
    sha256: Mapping[str, str]
    left_out: Sequence[str]

    def size(self, file: str) -> int:
        content = self.files[file]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def compose(lineage: Lineage, duties: Duties, name: str, *, base_id: str | None = None, samples: int = 3) -> Bundle:
    """The release of a finished, checked folder.

    name: user/name. base_id: the base on the hub, where the run had it from a folder. samples: held-out answers to show
    on the card. Raises InputError where the folder holds nothing to publish.
    """
    folder, manifest = lineage.release.folder, lineage.release.manifest
    assert folder is not None  # the release itself is always a folder
    is_rows = lineage.release.sampled
    wanted = _ROW_FILES if is_rows else _MODEL_FILES
    files: dict[str, Content] = {}
    left_out = []
    for file in manifest["files"]:
        if any(fnmatch(file, pattern) for pattern in wanted) and not any(fnmatch(file, log) for log in _LOGS):
            files[file] = folder / file
        elif not any(fnmatch(file, pattern) for pattern in _OWN):
            left_out.append(file)
    if not any(file.endswith((".safetensors", ".gguf", ".jsonl")) for file in files):
        raise InputError(f"{folder} holds nothing to publish: no weights and no rows that its manifest knows")
    for file in ("adapter_config.json", "config.json"):
        if file in files and (renamed := _named_base(folder / file, base_id)) is not None:
            files[file] = renamed
    for file, content in duties.files().items():
        files[file] = content
    public = public_lineage(lineage, base_id)
    for member in public.members[:-1]:
        label = member.label.rpartition("/")[2]
        files[f"{FOLDER}/{label}-{member.key[:12]}.json"] = _json(member.manifest)
    published = _published(manifest, duties, name, base_id, sorted(files), folder)
    described: dict[str, Any] = {**public.release.manifest, "published": published}
    shown = without_private_paths(_samples(folder, samples)) if not is_rows else []
    pictures = [file for file in files if file.endswith(".svg")]
    told = Lineage((*public.members[:-1], Member(described, None)), public.links)
    files[CARD] = write_card(described, told, shown, pictures).encode()
    # The card may be edited on the hub, so it is not among the files that the manifest proves; `card` is git's name for
    # the one written here, by which an edited one is known.
    recorded = manifest["files"]  # checked just now: 140 GB are not read once more
    proven = {
        file: recorded[file] if content == folder / file else _described(content)
        for file, content in sorted(files.items())
        if file != CARD
    }
    files[FILE] = _json({"format": FORMAT, **described, "card": blob_id(files[CARD]), "files": proven})
    repo_type: Literal["model", "dataset"] = "dataset" if is_rows else "model"
    digests = {file: entry["sha256"] for file, entry in proven.items()}
    digests |= {file: _described(files[file])["sha256"] for file in (CARD, FILE)}
    return Bundle(name, repo_type, dict(sorted(files.items())), digests, left_out)


def public_lineage(lineage: Lineage, base_id: str | None) -> Lineage:
    """The same lineage, of manifests that may be read by anybody; what links name follows."""
    public = [Member(public_manifest(member.manifest, base_id), member.folder) for member in lineage.members]
    keys = {old.key: new.key for old, new in zip(lineage.members, public, strict=True)}
    links = tuple(Link(keys[link.source], keys[link.target], link.role) for link in lineage.links)
    return Lineage(tuple(public), links)


def public_manifest(manifest: Manifest, base_id: str | None) -> dict[str, Any]:
    """A manifest without absolute paths and without the account that metrics were sent to.

    base_id: stands where a base had a folder's name.
    """
    public: dict[str, Any] = without_private_paths(manifest)
    if public.get("base") and base_id and not public["base"]["revision"]:
        public["base"] = {**public["base"], "name": base_id}
    if public.get("recipe"):
        public["recipe"] = {**public["recipe"], "track": {"wandb": None}}
    public["overrides"] = [text for text in public.get("overrides", ()) if not text.startswith("track.")]
    if made_from := manifest.get("made_from"):
        public["made_from"] = [public_manifest(source, base_id) for source in made_from]
    return {key: value for key, value in public.items() if key not in ("published", "card")}


def release_format(manifest: Manifest) -> Literal["adapter", "gguf", "rows", "transformers"]:
    """What a folder holds: an adapter, rows, or a whole model in one of two formats."""
    if manifest["kind"] == "reject":
        return "rows"
    if "adapter_config.json" in manifest["files"]:
        return "adapter"
    return "gguf" if any(file.endswith(".gguf") for file in manifest["files"]) else "transformers"


def write_folder(bundle: Bundle, out: Path) -> None:
    """Write the release as it would go up. Raises InputError where `out` is in the way, DiskFullError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--dry-run: {out} is there already: give another name, or move it away")
    require_space(out.absolute(), sum(bundle.size(file) for file in bundle.files), "the release")
    for file, content in bundle.files.items():
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(content, path)


def _published(
    manifest: Manifest, duties: Duties, name: str, base_id: str | None, files: list[str], folder: Path
) -> dict[str, Any]:
    """What was decided at publishing, for the card and for whoever checks it."""
    copies = {content: file for file, content in duties.files().items()}
    base = manifest["base"]
    id = base_id or (base["name"] if base["revision"] else None)
    public_base = str(without_private_paths(base["name"]))
    return {
        "name": name,
        "licence": duties.metadata,
        "built_with": duties.built_with,
        "terms": [
            {
                "base": terms.base,
                "licence": terms.id,
                "copy": None if terms.copy is None else copies.get(terms.copy),
                "witness": terms.witness,
                "is_multimodal": terms.is_multimodal,
            }
            for terms in duties.terms
        ],
        "writers": [
            {"label": writer.label, "base": writer.base, "licence": writer.licence} for writer in duties.writers
        ],
        "base_ids": [] if id is None else [id],
        "base_names": [id or public_base],
        "scores": is_reward(manifest),
        "format": release_format(manifest),
        "adapter": _adapter(folder),
        "rows": sorted(
            (file for file in files if file.endswith(".jsonl")), key=lambda file: (file != "rows.jsonl", file)
        ),
        "files": [file for file in files if not file.startswith(f"{FOLDER}/")],
    }


def _adapter(folder: Path) -> dict[str, Any] | None:
    """rank, and why vLLM cannot load the adapter beside its base; None where there is no adapter."""
    config = read_json(folder / "adapter_config.json")
    if config is None:
        return None
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    problem = None
    if config.get("use_dora"):
        problem = "it is a DoRA adapter"
    elif config.get("modules_to_save"):
        problem = f"it replaces {', '.join(config['modules_to_save'])}"
    return {"rank": max(ranks), "vllm_problem": problem}


def _named_base(path: Path, base_id: str | None) -> bytes | None:
    """A configuration that names the base as others know it, not by a folder of this machine; None where it does."""
    config = json.loads(path.read_text(encoding="utf-8"))
    renamed = {
        key: base_id or public
        for key in ("base_model_name_or_path", "_name_or_path")
        if isinstance(name := config.get(key), str) and (public := without_private_paths(name)) != name
    }
    if not renamed:
        return None
    config |= renamed
    return (json.dumps(config, indent=2, sort_keys=path.name == "adapter_config.json") + "\n").encode()


def _samples(folder: Path, count: int) -> list[dict[str, Any]]:
    """The last rows of samples.jsonl: of the finished model."""
    path = folder / _SAMPLES
    if count == 0 or not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    last = [row for row in rows if row.get("step") == rows[-1].get("step")]
    return last[:count]


def blob_id(content: Content) -> str:
    """Git's name for a file: what the hub knows small files by. Large ones it knows by their sha256."""
    if isinstance(content, Path) and content.stat().st_size > _LARGEST_BLOB:
        return ""
    raw = content if isinstance(content, bytes) else content.read_bytes()
    return sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def _described(content: Content) -> dict[str, Any]:
    if isinstance(content, bytes):
        return {"size": len(content), "sha256": sha256(content).hexdigest()}
    return {"size": content.stat().st_size, "sha256": file_sha256(content)}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
