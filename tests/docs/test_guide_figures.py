"""Figures in the guides that the code can make: they are made again."""

from __future__ import annotations

import re
from typing import Any

import pytest
from guides import read

from finetune.engine.optim import default_learning_rate
from finetune.plan.estimate import GIB, estimate
from finetune.recipe.load import recipe_from_dict
from finetune.recipe.schema import Recipe

KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)
BASES: dict[str, dict[str, Any]] = {  # the shapes of Llama 3.2 1B and Llama 3 8B and 70B
    "1B": {
        **dict(zip(KEYS, (2048, 16, 32, 8, 8192, 128256), strict=True)),
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "8B": dict(zip(KEYS, (4096, 32, 32, 8, 14336, 128256), strict=True)),
    "70B": dict(zip(KEYS, (8192, 80, 64, 8, 28672, 128256), strict=True)),
}
BASES |= {
    "3B": {
        **dict(zip(KEYS, (3072, 28, 24, 8, 8192, 128256), strict=True)),
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "7B": dict(zip(KEYS, (4096, 32, 32, 32, 11008, 32000), strict=True)),
}
NAMES = {"orpo": "dpo, `loss: orpo` (no reference)", "mean": "average of two"}


def recipe(load_in: str) -> Recipe:
    """The stages of the table in docs/procedures.md, as its text describes them."""
    rows = [{"path": "rows.jsonl"}]
    train = {"micro_batch_size": 1, "gradient_checkpointing": True}
    learns = {"start_from": "sft", "train": train}
    writes = {"reward": "reward", "prompts": rows}
    return recipe_from_dict(
        {
            "name": "table",
            "model": {"base": "org/base", "load_in": load_in, "max_length": 2048},
            "adapter": {"rank": 64},
            "stages": {
                "sft": {"kind": "sft", "data": rows, "train": train},
                "reward": {"kind": "reward", "data": rows, **learns},
                "dpo": {"kind": "dpo", "data": rows, **learns},
                "orpo": {"kind": "dpo", "loss": "orpo", "data": rows, "train": train},
                "reject": {"kind": "reject", "policy": "sft", "rows_at_once": 16, **writes},
                "ppo": {"kind": "ppo", "rows_at_once": 16, **learns, **writes},
                "grpo": {"kind": "grpo", **learns, **writes},
                "mean": {"kind": "average", "of": ["dpo", "ppo"]},
            },
        }
    ).recipe


def table() -> dict[str, list[str]]:
    """The rows of the first table under Memory: name → cells."""
    part = read("docs/procedures.md").partition("## Memory")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("load_in", ["nf4", "bf16"])
def test_the_memory_of_the_procedures_is_what_plan_computes(load_in: str) -> None:
    found = recipe(load_in)
    heading = read("docs/procedures.md").partition("## Memory")[2]
    [columns] = re.findall(r"^\| \| (.*) \|$", heading.partition("\n## ")[0], re.MULTILINE)
    for name, stage in found.stages.items():
        for size in ("1B", "8B", "70B"):
            config = BASES[size]
            written = table()[NAMES.get(name, name)][columns.split(" | ").index(f"{size} {load_in}")]
            needed = estimate(config, found.model, found.adapter, stage).memory / GIB
            assert written == f"{needed:.1f}", f"{name}, {size} {load_in}: {needed:.1f} GiB"


@pytest.mark.parametrize("path", ["README.md", "docs/memory.md"])
def test_the_memory_of_fine_tuning_is_what_plan_computes(path: str) -> None:
    rows = re.findall(r"^\| Llama \S+ (\w+) \| ([\d.]+)(?: GiB)? \| ([\d.]+)(?: GiB)? \|$", read(path), re.MULTILINE)
    assert len(rows) >= 3
    for size, *written in rows:
        for load_in, figure in zip(("nf4", "bf16"), written, strict=True):
            found = recipe(load_in)
            needed = estimate(BASES[size], found.model, found.adapter, found.stages["sft"]).memory / GIB
            assert figure in (f"{needed:.1f}", f"{needed:.0f}"), f"{size} {load_in}: {needed:.1f} GiB"


def test_the_automatic_learning_rates_are_what_is_taken() -> None:
    """docs/learning_rate.md: a table by the base's width, and what other kinds take of it at 8B."""
    text = read("docs/learning_rate.md")
    [written] = re.findall(r"^\| alpha 32 \| (.*) \|$", text, re.MULTILINE)
    widths = (2048, 3072, 4096, 5120, 6656, 8192, 16384)
    for rate, width in zip(written.split(" | "), widths, strict=True):
        assert rate.replace("e-", "e-0") == f"{default_learning_rate(width, 32.0, 64, False):.1e}"
    at_8b = default_learning_rate(4096, 32.0, 64, False)
    for share, words in ((1 / 3, "a third"), (1 / 40, "a fortieth"), (1 / 30, "a thirtieth")):
        [figure] = re.findall(rf"{words}(?: of it)? \((\de-\d) at 8B", text)
        assert float(figure) == float(f"{at_8b * share:.0e}")
    kinds = {"reward": "1 / 3", "dpo": "1 / 40", "ppo": "1 / 30", "trl_online": "1 / 30"}
    for kind, factor in kinds.items():  # read, not imported: TRL and transformers would take ten seconds
        assert f"\nRATE_FACTOR = {factor}\n" in read(f"finetune/stages/{kind}.py")
