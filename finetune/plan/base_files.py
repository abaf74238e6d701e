"""Where the base's files lie and what they are: found and named without loading a weight.

A hub id is resolved to a commit, which is what a run records; a folder is identified by a digest of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import BaseModelError
from finetune.recipe.settings import ModelSettings

_FULL_HASH_BYTES = 64 * 2**20
"""Files up to this size enter the digest whole; reading 140 GB of a 70B base at every `plan` would take minutes."""
_SAMPLES, _SAMPLE_BYTES = 64, 2**16
"""Of larger files: the first and last block and others evenly between, 4 MiB in all, and the size."""

_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*", "USE_POLICY*", "Notice*", "README.md")
_WEIGHT_FILES = ("*.safetensors",)


@dataclass(frozen=True)
class BaseFiles:
    """A base on this disk. `name` is what a user calls it (hub id, or the folder as the recipe writes it)."""

    folder: Path
    name: str
    revision: str | None
    config: Mapping[str, Any]
    digest: str
    chat_template: str | None

    @property
    def hidden_size(self) -> int:
        return int(self.config["hidden_size"])


def locate_base(model: ModelSettings, folder: Path, *, weights: bool) -> BaseFiles:
    """Find the base; for a hub id download what is missing (without `weights` only its small files).

    folder: where relative paths start, the recipe's own folder. Errors: BaseModelError.
    """
    path = (folder / Path(model.base).expanduser()).resolve()
    if path.is_dir():
        revision = None
    elif _looks_like_path(model.base):
        raise BaseModelError(f"model.base: no folder {path}; give a checkpoint folder or a hub id such as org/name")
    else:
        path, revision = _from_hub(model.base, model.revision, weights, path)
    config = read_json(path / "config.json")
    if config is None:
        raise BaseModelError(f"{path} has no config.json: not a Hugging Face checkpoint folder")
    _check_is_llama(config, path)
    if weights:
        check_safetensors(path)
    return BaseFiles(path, model.base, revision, config, base_digest(path, revision), _chat_template(path))


def check_safetensors(folder: Path) -> None:
    """Weights are read from safetensors only: a pickle can run code. Raises BaseModelError."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled:
        raise BaseModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when they are loaded: convert "
            "them to safetensors first, with transformers' save_pretrained in a place that you trust"
        )
    raise BaseModelError(f"{folder} has no weights (*.safetensors)")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. Raises BaseModelError when it is broken."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BaseModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BaseModelError(f"{path} should hold a JSON object, has a {type(value).__name__}")
    return value


def base_digest(folder: Path, revision: str | None) -> str:
    """What identifies the base: the hub commit, or sha256 over names and content of config, tokenizer and weights."""
    if revision is not None:
        return f"commit:{revision}"
    digest = hashlib.sha256()
    patterns = ("*.json", "*.jinja", "tokenizer.model", *_WEIGHT_FILES)
    for path in sorted({p for pattern in patterns for p in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= _FULL_HASH_BYTES:
                while block := file.read(2**20):
                    digest.update(block)
            else:
                for index in range(_SAMPLES):
                    file.seek((size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
    return f"sha256:{digest.hexdigest()}"


def _looks_like_path(base: str) -> bool:
    return base.startswith((".", "/", "~")) or base.count("/") != 1


def _check_is_llama(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise BaseModelError(
            f"{path}: model_type is {kind!r}, not 'llama'. finetune serves LLaMA text models (LLaMA 1, Llama 2, 3, "
            "3.1, 3.2 1B/3B, 3.3 and what is built on them)"
        )
    if missing := [key for key in ("hidden_size", "num_hidden_layers", "vocab_size") if key not in config]:
        raise BaseModelError(f"{path}/config.json lacks {', '.join(missing)}")
    if isinstance(quantised := config.get("quantization_config"), dict):
        raise BaseModelError(
            f"{path} is already quantised ({quantised.get('quant_method', 'unknown method')}): take the original "
            "checkpoint, model.load_in quantises it while it is loaded"
        )
    if "auto_map" in config:
        raise BaseModelError(f"{path}/config.json asks for code of its own (auto_map); finetune runs no remote code")


def _chat_template(folder: Path) -> str | None:
    if (jinja := folder / "chat_template.jinja").is_file():
        return jinja.read_text(encoding="utf-8")
    template = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else None


def _from_hub(repo: str, revision: str | None, weights: bool, no_folder: Path) -> tuple[Path, str]:
    """no_folder: where a folder of that name would be; who meant one is told that it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    patterns = [*_SMALL_FILES, *(_WEIGHT_FILES if weights else ())]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise BaseModelError(
            f"{repo} is gated: accept its licence on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{repo}: no such model on the hub, or it is private and you are not logged in (`hf auth login`); there "
            f"is no folder {no_folder} either"
        ) from error
    except RevisionNotFoundError as error:
        raise BaseModelError(f"{repo} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"{repo} is not in the local cache and the hub could not be reached ({type(error).__name__}), and there "
            f"is no folder {no_folder} either: check the network, or give a folder with the checkpoint as model.base"
        ) from error
    return folder, folder.name
