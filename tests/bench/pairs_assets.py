"""What the pairs benchmark runs on: a random LLaMA, comparisons as text, and the same as tokens in training order.

Run by pairs_speed.py in a process of its own, for the reason that watch.py gives.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from assets import SHAPE, SMALL, WORDS, write_base, write_tokenizer

from finetune.data.comparisons import Comparisons
from finetune.data.prepare_preference import PreparedComparisons, prepare_comparisons
from finetune.data.tokenizer import Tokenizer
from finetune.families.detect import resolve
from finetune.recipe.load import load_recipe

LONG_PROMPT, LONG_ANSWER = 768, 96


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="holds recipe.yaml; base/, train.json, tokens.jsonl are written")
    parser.add_argument("mix", choices=["dpo_en", "long"])
    parser.add_argument("--pairs", type=int, required=True)
    parser.add_argument("--shared", type=Path, help="folder with real text and tokenizers")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    folder: Path = options.folder
    write_tokenizer(folder / "base", options.shared)
    write_base(folder / "base", SMALL if options.small else SHAPE)
    if options.mix == "long":
        rows = _long(folder, options.pairs)
    elif options.shared is not None:
        rows = json.loads((options.shared / "data" / "dpo_en.json").read_text("utf-8"))
    else:
        rows = _made_up(2 * options.pairs)
    _write(folder, rows)
    data = _prepare(folder)
    whole = [_tokens(data.comparisons, group) for group in range(len(rows))]
    rows = [row for row, why, pair in zip(rows, data.dropped, whole, strict=True) if why is None and pair is not None]
    # Evenly spread over the file, so that a few pairs have the lengths of all.
    _write(folder, [rows[i * len(rows) // options.pairs] for i in range(min(options.pairs, len(rows)))])
    data = _prepare(folder)
    with (folder / "tokens.jsonl").open("w", encoding="utf-8") as file:
        for group in data.epoch_order(0):
            file.write(json.dumps(_tokens(data.train, int(group))) + "\n")


def _tokens(data: Comparisons, group: int) -> dict[str, list[int]] | None:
    """A pair in TRL's form. None: the prompt's last token depends on the answer, which that form cannot say."""
    better, worse = data.group(group)
    begins = int(data.prompt_lengths[better])
    chosen, rejected = (data.rows.row(row)[0].tolist() for row in (better, worse))
    if begins != data.prompt_lengths[worse] or chosen[:begins] != rejected[:begins]:
        return None
    return {"prompt_ids": chosen[:begins], "chosen_ids": chosen[begins:], "rejected_ids": rejected[begins:]}


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")


def _prepare(folder: Path) -> PreparedComparisons:
    """What `finetune dpo` and `finetune reward` themselves make of the recipe's rows."""
    loaded = load_recipe(folder / "recipe.yaml")
    tokenizer = Tokenizer.load(folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))
    return prepare_comparisons(
        loaded.recipe.stages["dpo"],
        slices=(),
        judged=False,
        model=loaded.recipe.model,
        seed=loaded.recipe.seed,
        locate=loaded.locate,
        stage_outputs={},
        family=resolve(config, tokenizer.special_tokens, loaded.recipe.model.template).family,
        tokenizer=tokenizer,
        cache=None,
        say=lambda line: None,
    )


def _pair(prompt: list[str], chosen: list[str], rejected: list[str]) -> dict[str, Any]:
    return {
        "conversations": [{"from": "human", "value": " ".join(prompt)}],
        "chosen": {"from": "gpt", "value": " ".join(chosen)},
        "rejected": {"from": "gpt", "value": " ".join(rejected)},
    }


def _long(folder: Path, count: int) -> list[dict[str, Any]]:
    """Random words, as many as make 768 tokens of prompt, template included, and 96 of each answer."""
    words = _whole_words(Tokenizer.load(folder / "base"))
    random = np.random.default_rng(5)

    def draw(number: int) -> list[str]:
        return [words[i] for i in random.integers(0, len(words), number)]

    _write(folder, [_pair(draw(20), draw(20), draw(20))])
    tried = _prepare(folder).comparisons
    prompt = LONG_PROMPT - int(tried.prompt_lengths[0]) + 20
    answer = LONG_ANSWER - int(tried.rows.lengths[0] - tried.prompt_lengths[0]) + 20
    return [_pair(draw(prompt), draw(answer), draw(answer)) for _ in range(count)]


def _whole_words(tokenizer: Tokenizer) -> list[str]:
    """Words that are one token each."""
    names = [tokenizer.token_text(index).strip() for index in range(3, WORDS)]
    names = [name for name in names if name.isascii() and name.isalnum() and len(name) > 1][:8000]
    empty = len(tokenizer.encode_text("a a")) - 1
    lengths = [len(ids) for ids in tokenizer.encode_texts([f"a {name}" for name in names])]
    return [name for name, length in zip(names, lengths, strict=True) if length == empty + 1]


def _made_up(count: int) -> list[dict[str, Any]]:
    """Log-normal lengths about like dpo_en's: prompts of 60 words, answers of 250."""
    random = np.random.default_rng(3)

    def draw(mean: float, most: int) -> list[str]:
        number = int(np.clip(random.lognormal(math.log(mean) - 0.3, 0.8), 4, most))
        return [f"w{i}" for i in random.integers(0, WORDS - 3, number)]

    return [_pair(draw(60, 300), draw(250, 600), draw(250, 600)) for _ in range(count)]


if __name__ == "__main__":
    main()
