"""The tokenizer beside an adapter: what the rows were tokenised with, and where generation stops."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from finetune.data.tokenizer import Tokenizer
from finetune.families.detect import Resolved


def save_tokenizer(base: Path, tokenizer: Tokenizer, resolved: Resolved, out: Path) -> None:
    """Write tokenizer files, chat_template.jinja and generation_config.json into `out`.

    The template is the one the rows were rendered with, so transformers, vLLM and llama.cpp prompt with the ids that
    were trained; the eos token is the one that ends a trained answer, so generation stops there.
    """
    family = resolved.family
    stop = family.stop_tokens[0] if family.stop_tokens else family.end
    template = family.chat_template() if family.is_chat else None
    tokenizer.save(out, bos=family.bos, eos=stop, pad=resolved.pad_token, chat_template=template)
    if (base / "tokenizer.model").is_file():  # llama.cpp and GGUF want the original
        shutil.copyfile(base / "tokenizer.model", out / "tokenizer.model")
    stops = [tokenizer.id_of(token) for token in dict.fromkeys((stop, *family.eos_tokens))]
    generation = {
        "bos_token_id": tokenizer.id_of(family.bos),
        "eos_token_id": [number for number in stops if number is not None],
        "pad_token_id": tokenizer.id_of(resolved.pad_token),
    }
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
