"""The tokenizer beside an adapter: the base's own files, with the template, pad and stop token that were trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune.data.tokenizer import Tokenizer
from finetune.families.detect import Resolved

_COPIED = ("tokenizer.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json")


def save_tokenizer(base: Path, tokenizer: Tokenizer, resolved: Resolved, max_length: int, out: Path) -> None:
    """Write tokenizer files, chat_template.jinja and generation_config.json into `out`.

    The template is the one the rows were rendered with, so transformers, vLLM and llama.cpp prompt with the ids that
    were trained; the eos token is the one that ends a trained answer, so generation stops there.
    """
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    if not (out / "tokenizer.json").is_file():
        tokenizer.save(out / "tokenizer.json")
    family = resolved.family
    stop = family.stop_tokens[0] if family.stop_tokens else family.end
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if (base / "tokenizer_config.json").is_file():
        config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    config |= {
        "bos_token": family.bos,
        "eos_token": stop,
        "pad_token": resolved.pad_token,
        "padding_side": "left",
        "model_max_length": max_length,
    }
    _write(out / "tokenizer_config.json", config)
    (out / "special_tokens_map.json").unlink(missing_ok=True)  # tokenizer_config.json says it, and says it right
    if family.is_chat:
        (out / "chat_template.jinja").write_text(family.chat_template(), encoding="utf-8")
    ids = [tokenizer.id_of(token) for token in dict.fromkeys((stop, *family.eos_tokens))]
    _write(
        out / "generation_config.json",
        {
            "bos_token_id": tokenizer.id_of(family.bos),
            "eos_token_id": [id for id in ids if id is not None],
            "pad_token_id": tokenizer.id_of(resolved.pad_token),
        },
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
