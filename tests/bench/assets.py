"""What the speed benchmark runs on: a random LLaMA, rows of text, and the same rows as tokens in training order.

Run by sft_speed.py in a process of its own, so that the process which measures stays small: Linux counts the memory of
the process that starts another into the peak of the new one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from finetune.data.prepare import PreparedSft, prepare_sft
from finetune.data.tokenizer import Tokenizer
from finetune.families.detect import resolve
from finetune.recipe.load import load_recipe

WORDS = 32_000
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""25.2M parameters in the blocks; embedding and head, not tied, are 16.4M each. `--small` is for trying things out."""
SMALL = SHAPE | {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="holds recipe.yaml; base/, train.json, tokens.jsonl are written")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--shared", type=Path, help="folder with real text and tokenizers")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    folder: Path = options.folder
    real = options.shared is not None
    write_tokenizer(folder / "base", options.shared)
    write_base(folder / "base", SMALL if options.small else SHAPE)
    rows = (
        json.loads((options.shared / "data" / "alpaca_en.json").read_text("utf-8")) if real else _made_up(options.rows)
    )
    # Rows as they come, without the few over max_length: then every step has the same number of rows for everybody.
    _write_rows(folder, rows[: options.rows * 3 // 2])
    kept = [row for row, why in zip(rows, _prepare(folder).dropped, strict=False) if why is None]
    _write_rows(folder, kept[: options.rows])
    data = _prepare(folder)
    with (folder / "tokens.jsonl").open("w", encoding="utf-8") as file:
        for row in data.epoch_order(0):
            ids, trained = (array.tolist() for array in data.train.row(int(row)))
            file.write(json.dumps({"ids": ids, "trained": trained}) + "\n")


def _write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")


def _prepare(folder: Path) -> PreparedSft:
    """What `finetune sft` itself makes of the recipe's rows."""
    loaded = load_recipe(folder / "recipe.yaml")
    tokenizer = Tokenizer.load(folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
    family = resolve(config, tokenizer.special_tokens, loaded.recipe.model.template).family
    return prepare_sft(
        loaded.recipe.stages["sft"],
        model=loaded.recipe.model,
        seed=loaded.recipe.seed,
        locate=loaded.locate,
        stage_outputs={},
        family=family,
        tokenizer=tokenizer,
        cache=None,
        say=lambda line: None,
    )


def write_base(folder: Path, shape: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=WORDS, max_position_embeddings=2048, tie_word_embeddings=False, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)


def write_tokenizer(folder: Path, shared: Path | None) -> None:
    """Llama 2's own 32,000 words where they are at hand; else that many made-up words, one token each."""
    folder.mkdir(parents=True)
    if shared is not None:
        shutil.copyfile(shared / "tokenizers" / "llama2" / "tokenizer.json", folder / "tokenizer.json")
    else:
        words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(WORDS - 3))]
        backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(words[:3])
        backend.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _made_up(count: int) -> list[dict[str, str]]:
    """Rows with lengths as instruction data has them: log-normal, mean about 170 tokens, at most 1,000."""
    random = np.random.default_rng(3)
    rows = []
    for _ in range(count * 3 // 2):
        words = [f"w{i}" for i in random.integers(0, WORDS - 3, int(np.clip(random.lognormal(4.4, 0.95), 4, 900)))]
        ask = min(len(words) - 1, int(random.integers(5, 25)))
        rows.append({"instruction": " ".join(words[:ask]), "input": "", "output": " ".join(words[ask:])})
    return rows


if __name__ == "__main__":
    main()
