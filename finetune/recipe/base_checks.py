"""Is a folder a LLaMA checkpoint that can be trained on? Told from its small files and the weights' headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_LFS_POINTER = b"version https://git-lfs"

Wrong = tuple[str, str | None]
"""What is wrong, and what to do about it."""


def looks_like_path(base: str, slashes: int = 1) -> bool:
    """A hub id has one slash and begins with a name; everything else with a slash or a leading . ~ is a path."""
    return base.startswith((".", "/", "~")) or base.count("/") > slashes


def base_problems(folder: Path) -> list[Wrong]:
    """All that is wrong with a local base."""
    if not folder.is_dir():
        return [(f"{folder} is a file", "give the checkpoint's folder")]
    if wrong := _config_problem(folder):
        return [wrong]
    return [wrong for wrong in (_tokenizer_problem(folder), _weights_problem(folder)) if wrong is not None]


def _config_problem(folder: Path) -> Wrong | None:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "params.json").is_file():
            return (
                f"{folder} is a checkpoint in Meta's own format (params.json, consolidated.*.pth)",
                "take the Hugging Face form of the same checkpoint, or convert it with transformers' "
                "convert_llama_weights_to_hf.py",
            )
        if (folder / "adapter_config.json").is_file():
            return f"{folder} is an adapter, not a base", "give it as start_from of a stage, and its base as model.base"
        return f"{folder} has no config.json: not a Hugging Face checkpoint folder", None
    config = _json_object(path)
    if isinstance(config, str):
        return f"{path} {config}", None
    kind = config.get("model_type")
    if kind != "llama":
        return (
            f"{folder} is a model of type {kind!r}; only LLaMA text models (model_type 'llama') are supported",
            "LLaMA 1, Llama 2, 3, 3.1, 3.2 1B and 3B, 3.3, and what is built on them",
        )
    if "auto_map" in config:
        return f"{path} asks for code of its own (auto_map); finetune runs no remote code", None
    if isinstance(quantised := config.get("quantization_config"), dict):
        return (
            f"{folder} is already quantised ({quantised.get('quant_method', 'unknown method')})",
            "take the original checkpoint: model.load_in quantises it while it is loaded",
        )
    sizes = ("hidden_size", "num_hidden_layers", "vocab_size")
    if wrong := [key for key in sizes if key in config and not (isinstance(config[key], int) and config[key] > 0)]:
        return f"{path}: {wrong[0]} should be a whole number above 0, is {config[wrong[0]]!r}", None
    missing = [key for key in sizes if key not in config]
    return (f"{path} lacks {', '.join(missing)}", None) if missing else None


def _tokenizer_problem(folder: Path) -> Wrong | None:
    found = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not found:
        return f"{folder} has no tokenizer (tokenizer.json or tokenizer.model)", "copy it from the base's origin"
    return next((wrong for path in found if (wrong := _content_problem(path))), None)


def _weights_problem(folder: Path) -> Wrong | None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        if not pickled:
            return f"{folder} has no weights (*.safetensors)", None
        return (
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when they are loaded",
            "convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new) "
            "writes safetensors; copy the tokenizer files too",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = _json_object(index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            return f"{index} {content if isinstance(content, str) else 'has no weight_map'}", None
        if missing := sorted({str(name) for name in shards.values()} - {path.name for path in weights}):
            return f"{folder} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""), (
                "the download is not complete"
            )
    return next((wrong for path in weights if (wrong := _content_problem(path) or _length_problem(path))), None)


def _content_problem(path: Path) -> Wrong | None:
    if path.stat().st_size == 0:
        return f"{path} is empty", None
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return f"{path} is a git-lfs pointer, not the file itself", "run `git lfs pull` in that folder"
    return None


def _length_problem(path: Path) -> Wrong | None:
    """A safetensors file says in its header how long it is (8 bytes of header length, JSON, then the tensors)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > size - 8:
            return f"{path} is cut off or no safetensors file", "download it again"
        try:
            header = json.loads(file.read(header_bytes))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{path} is no safetensors file", "download it again"
    expected = 8 + header_bytes + max(ends, default=0)
    if size < expected:
        return f"{path} is cut off: {size:,} of {expected:,} bytes", "download it again"
    return None


def _json_object(path: Path) -> dict[str, Any] | str:
    """The object in the file, or what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return f"is not valid JSON: {error}"
    return value if isinstance(value, dict) else "does not hold a JSON object"
