"""The licence of a base: found in its own folder, or told by the publisher; never guessed.

A LICENSE file says it best, then the `license` of the folder's README.md. A base that looks like one of Meta's and says
nothing is refused with the way out, and so is one that is under Meta's licence and has no copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from finetune.errors import BaseModelError, InputError
from finetune.families.detect import META_VOCABULARY
from finetune.plan.base_files import base_digest, read_json
from finetune.plan.manifest import read_manifest
from finetune.release.licences import LICENCES, Licence, check_copy, recognise
from finetune.release.lineage import Manifest

LICENCE_FILES = ("LICENSE*", "LICENCE*", "USE_POLICY*", "NOTICE*")
_FETCHED = (*LICENCE_FILES, "README.md", "config.json")
_META_NAMES = ("meta-llama/", "codellama/")


@dataclass(frozen=True)
class Terms:
    """base: what it is called. id: its licence, as the hub or its maker names it. meta: where it is one of Meta's.

    copy, policy, attribution (Apache's NOTICE): the files to pass on, None where the base has none. witness: where the
    licence was read, in words.
    """

    base: str
    id: str
    meta: Licence | None
    copy: Path | None
    policy: Path | None
    attribution: Path | None
    witness: str
    is_multimodal: bool


def licence_folder(manifest: Manifest, places: Sequence[Path], given: Sequence[Path], *, network: bool) -> Path:
    """The folder of a manifest's base. places: run folders whose adapter_config.json may name it. given: by the user.

    Where the base is gone, a place that holds the licence, proven by its manifest, stands for it.
    network: the hub may be asked for a hub base's licence files. Raises InputError where it is not to be found, and for
    a given folder that is another base.
    """
    recorded = manifest["base"]
    for folder in given:
        digest = base_digest(folder, None)
        # A commit's digest cannot be compared with a folder's: there the user's word counts.
        if digest == recorded["digest"] or not recorded["digest"].startswith("sha256:"):
            return folder
    if recorded["revision"]:
        return _snapshot(recorded["name"], recorded["revision"], network)
    named = [(read_json(place / "adapter_config.json") or {}).get("base_model_name_or_path") for place in places]
    for name in (*named, recorded["name"]):
        if name and Path(name).is_dir() and base_digest(Path(name), None) == recorded["digest"]:
            return Path(name)
    for place in places:  # a merged or downloaded folder carries its base's licence itself
        files = (read_manifest(place) or {}).get("files", {})
        if any(fnmatch(file, "LICEN[SC]E*") for file in files):
            return place
    tried = [str(folder) for folder in given]
    raise InputError(
        (f"{' and '.join(tried)} (--base) is another base than the manifest's. " if tried else "")
        + f"The base {recorded['name']} is not where it was, or has changed since: its folder holds the licence "
        "that the release has to carry. Say where it is with --base FOLDER"
    )


def read_terms(folder: Path, manifest: Manifest, *, stated: str | None = None, base_id: str | None = None) -> Terms:
    """The licence of the base in `folder`. stated: the publisher's --license. base_id: its name on the hub.

    Raises InputError where there is none, where two sources differ, and where Meta's has no copy.
    """
    name = base_id or _shown(manifest["base"]["name"])
    copy, text_id = _licence_file(folder)
    readme = _readme(folder)
    readme_id = readme.get("license") if isinstance(readme.get("license"), str) else None
    if readme_id == "other":
        readme_id = readme.get("license_name")
    ids = [name, manifest["base"]["name"], *_listed(readme.get("base_model"))]
    made_by_meta = next((i for i in ids if str(i).lower().startswith(_META_NAMES)), None)
    if made_by_meta and readme_id not in (None, *LICENCES) and text_id is None:
        readme_id = None  # its README cannot give away what it has from Meta
    own, witness = (text_id, f"{copy.name} in the base's folder") if copy and text_id else (readme_id, "its README.md")
    if own is not None and stated is not None and stated != own:
        raise InputError(
            f"--license {stated}: but {name} is under {own}, says {witness}. Leave --license out, or correct {folder}"
        )
    licence, witness = (own, witness) if own is not None else (stated, "the publisher (--license)")
    if licence is None:
        raise InputError(_unknown(folder, name, manifest, made_by_meta))
    meta = LICENCES.get(licence)
    if made_by_meta and meta is None:
        raise InputError(f"--license {licence}: {name} comes from {made_by_meta}, which is under a licence of Meta's")
    if meta is not None:
        _check_generation(meta, manifest, name, witness)
        if meta.notice is not None:
            if copy is None:
                raise InputError(_no_copy(meta, folder, name))
            check_copy(meta, copy.read_text(encoding="utf-8", errors="replace"), str(copy))
    policy, attribution = (next(iter(sorted(folder.glob(p))), None) for p in ("USE_POLICY*", "NOTICE*"))
    return Terms(name, licence, meta, copy, policy, attribution, witness, _is_multimodal(manifest))


def _licence_file(folder: Path) -> tuple[Path | None, str | None]:
    """The licence file, and the id of what it is; of several the first that is recognised."""
    files = sorted(p for pattern in ("LICENSE*", "LICENCE*", "license*") for p in folder.glob(pattern) if p.is_file())
    for file in files:
        if found := recognise(file.read_text(encoding="utf-8", errors="replace")):
            return file, found
    return (files[0], None) if files else (None, None)


def _readme(folder: Path) -> Mapping[str, Any]:
    """The metadata of the folder's README.md, {} where it has none."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    parts = path.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []


def _check_generation(meta: Licence, manifest: Manifest, name: str, witness: str) -> None:
    """Llama 3's tokenizer under Llama 2's licence, or the other way round, is a file in the wrong folder."""
    generation = (manifest.get("family") or {}).get("generation")
    old = ("llama1", "llama2")
    if generation is not None and (generation in old) != (meta.id in old):
        raise InputError(
            f"{name} has the tokenizer of {generation}, but {witness} says {meta.id}: put the licence of its own "
            "generation beside the base"
        )


def _unknown(folder: Path, name: str, manifest: Manifest, made_by_meta: str | None) -> str:
    generation = (manifest.get("family") or {}).get("generation", "")
    group = "llama3" if generation.startswith("llama3") else generation
    words = (read_json(folder / "config.json") or {}).get("vocab_size")
    if made_by_meta or words in META_VOCABULARY.get(group, ()):
        model = LICENCES[generation].model if generation in LICENCES else "a LLaMA"
        looks = f"comes from {made_by_meta}" if made_by_meta else f"looks like {model}"
        return (
            f"{name} {looks}, and its folder says nothing of its licence: put the LICENSE and USE_POLICY.md of its "
            f"release into {folder}. If it is somebody else's model, say under which licence with --license ID"
        )
    return (
        f"the licence of {name} is not known: its maker says it, not finetune. Put its LICENSE into {folder}, or say "
        "which it is with --license ID (apache-2.0, mit, … or a name of its own)"
    )


def _no_copy(meta: Licence, folder: Path, name: str) -> str:
    return (
        f"{name} is under the {meta.name}, of which everybody who gets the model has to get a copy, and {folder} has "
        "none: put the LICENSE and USE_POLICY.md that Meta ships with the model there"
    )


def _is_multimodal(manifest: Manifest) -> bool:
    names = manifest["base"].get("architecture") or ()
    return any("ConditionalGeneration" in str(name) for name in names)


def _shown(name: str) -> str:
    """A hub id as it is; of a folder its last name."""
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else Path(name).name


def _snapshot(repo: str, revision: str, network: bool) -> Path:
    """The base's small files at a commit: from the local cache, or else from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = list(_FETCHED)
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True))
        if any(folder.glob("LICEN[SC]E*")) or not network:
            return folder
    except (LocalEntryNotFoundError, OSError):
        if not network:
            raise BaseModelError(
                f"{repo} is not in the local cache, and a dry run asks no network: its licence files are needed. Give "
                "a folder that has them with --base, or fetch it first (`hf download`)"
            ) from None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"the licence files of {repo} could not be fetched ({type(error).__name__}): check the network and your "
            "access to it, or give a folder that has them with --base"
        ) from error
