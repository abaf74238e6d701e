"""What a stage will need, from the base's config and the recipe alone: memory and disk, before anything is loaded.

Formulas and their checks against published figures: docs/memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.recipe.settings import AdapterSettings, ModelSettings
from finetune.recipe.train_settings import TrainSettings

GIB = 2**30
_NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight: 4, an 8-bit scale for 64 weights, a 32-bit scale for 256 of those (double quantisation)."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a LLaMA that memory depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        heads = int(config.get("num_attention_heads", 32))
        hidden = int(config["hidden_size"])
        return cls(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head=int(config.get("head_dim") or hidden // heads),
            ffn=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of the seven linear layers of a block."""
        attention, kv = self.heads * self.head, self.kv_heads * self.head
        return {
            "q_proj": (self.hidden, attention),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (attention, self.hidden),
            "gate_proj": (self.hidden, self.ffn),
            "up_proj": (self.hidden, self.ffn),
            "down_proj": (self.ffn, self.hidden),
        }

    @property
    def block_weights(self) -> int:
        """Weights of all linear layers in blocks: what 4 and 8 bits apply to."""
        return self.layers * sum(i * o for i, o in self.linears.values())

    @property
    def other_weights(self) -> int:
        """Embeddings, head and norms."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.block_weights + self.other_weights


@dataclass(frozen=True)
class Estimate:
    """Bytes. `memory` is the sum of the parts; `disk` is the largest a run's folder gets."""

    trainable: int
    weights: float
    adapter: float
    optimizer: float
    activations: float
    head: float
    disk: float

    @property
    def memory(self) -> float:
        return self.weights + self.adapter + self.optimizer + self.activations + self.head


def lora_parameters(shape: Shape, adapter: AdapterSettings) -> int:
    """Trainable LoRA parameters. A regex is counted as all linear layers: an upper bound."""
    chosen = adapter.targets if isinstance(adapter.targets, list) else list(shape.linears)
    layers = (size for name, size in shape.linears.items() if name in {target.split(".")[-1] for target in chosen})
    per_block = sum(adapter.rank * (i + o) + (o if adapter.dora else 0) for i, o in layers)
    count = shape.layers * per_block
    if "lm_head" in adapter.modules_to_save:
        count += shape.vocabulary * shape.hidden
    if "embed_tokens" in adapter.modules_to_save:
        count += shape.vocabulary * shape.hidden
    return count


def estimate(
    config: Mapping[str, Any], model: ModelSettings, adapter: AdapterSettings, train: TrainSettings | None
) -> Estimate:
    """Peak memory in training, for a micro-batch of rows that are all max_length long: an upper bound for real rows."""
    shape = Shape.of(config)
    wide = 4 if model.load_in == "fp32" or model.compute == "fp32" else 2
    block_bytes = {"nf4": _NF4_BITS / 8, "int8": 1, "bf16": 2, "fp32": 4}[model.load_in]
    trainable = lora_parameters(shape, adapter)
    if train is None:  # nothing is trained
        train = TrainSettings(micro_batch_size=1)
    tokens = train.micro_batch_size * model.max_length
    # Saved for the backward pass of one block, in values a token: inputs and outputs of its linear layers and norms.
    per_block = 10 * shape.hidden + 4 * shape.ffn + 2 * (shape.heads + 2 * shape.kv_heads) * shape.head
    blocks = shape.layers * shape.hidden + per_block if train.gradient_checkpointing else shape.layers * per_block
    dequantised = 3 * shape.hidden * shape.ffn * wide if model.load_in in ("nf4", "int8") else 0
    state_bytes = 2 if "8bit" in train.optimizer else 8
    return Estimate(
        trainable=trainable,
        weights=shape.block_weights * block_bytes + shape.other_weights * wide,
        adapter=trainable * (4 + 4),
        optimizer=trainable * state_bytes,
        activations=tokens * blocks * wide + dequantised,
        head=2 * 32 * 2**20 + tokens * shape.hidden * wide * 2,
        disk=trainable * (4 + (4 + state_bytes) * (train.keep_checkpoints + 1)) + 32 * 2**20,
    )
