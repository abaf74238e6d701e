"""Hand-made comparisons and a tiny LLaMA to learn from them, for the tests of the machinery of reward and dpo."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.data.comparisons import Comparisons
from finetune.data.store import pack
from finetune.model import adapter, ragged
from finetune.recipe.settings import AdapterSettings

WORDS = 61
CPU = torch.device("cpu")


def comparisons(groups, *, desirable=None, formatted=(), margins=None, ratings=None):
    """groups: [(prompt ids, [answer ids, best first])]. formatted: ids that are format tokens."""
    rows, sizes, prompts = [], [], []
    for prompt, answers in groups:
        sizes.append(len(answers))
        for answer in answers:
            rows.append(([*prompt, *answer], [0] * len(prompt) + [1] * len(answer)))
            prompts.append(len(prompt))
    tokens = pack(rows)
    count = len(groups)
    return Comparisons(
        rows=tokens.select(np.arange(len(rows)), np.repeat(np.arange(count), sizes)),
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        prompt_lengths=np.array(prompts, dtype=np.int64),
        margins=np.full(count, np.nan) if margins is None else np.array(margins, dtype=np.float64),
        ratings=np.full(count, -1, dtype=np.int8) if ratings is None else np.array(ratings, dtype=np.int8),
        desirable=np.full(count, -1, dtype=np.int8) if desirable is None else np.array(desirable, dtype=np.int8),
        formatted=np.isin(tokens.ids, list(formatted)).astype(np.uint8),
        extra={},
    )


def random_comparisons(count, *, sizes=(2,), seed=0, desirable=False):
    """count groups of sizes in turn, with prompts of 2 to 12 tokens and answers of 1 to 9."""
    generator = np.random.default_rng(seed)

    def ids(low, high):
        return generator.integers(3, WORDS, generator.integers(low, high)).tolist()

    groups = [(ids(2, 13), [ids(1, 10) for _ in range(sizes[i % len(sizes)])]) for i in range(count)]
    return comparisons(groups, desirable=[i % 2 for i in range(count)] if desirable else None, formatted=(5, 6, 7))


def prepared(train, held_out=None):
    """What the stages make work of, without files: every epoch in the data's own order."""
    return SimpleNamespace(
        train=train,
        held_out=held_out,
        epoch_order=lambda epoch: np.arange(len(train)),
        origin_of=lambda group: f"row {group}",
    )


def tiny_model(*, dropout=0.0, seed=0, **changes):
    """(base, base with a trainable adapter that is not zero): 2 layers of width 32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=WORDS, initializer_range=0.2,
    )  # fmt: skip
    base = LlamaForCausalLM(config).requires_grad_(False).eval()
    ragged.install(base)
    model = adapter.new_adapter(base, AdapterSettings(rank=4, dropout=dropout, **changes), seed=3)
    return base, model


def shaken(model, size=0.05, seed=5):
    """Move every trainable weight a little, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapter.trainable(model).values():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return model
