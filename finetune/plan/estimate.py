"""What a stage will need, from the base's config and the recipe alone: memory and disk, before anything is loaded.

Formulas and their checks against published figures: docs/memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.recipe.average_stage import AverageStage
from finetune.recipe.learning_stages import DpoStage, RewardStage
from finetune.recipe.sampling_stages import GrpoStage, PpoStage, RejectStage, RlooStage, ScoredStage, TrlOnlineStage
from finetune.recipe.schema import Stage
from finetune.recipe.settings import AdapterSettings, ModelSettings

GIB = 2**30
_NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits a weight: 4, an 8-bit scale for 64 weights, a 32-bit scale for 256 of those (double quantisation)."""
_PORTION_TOKENS = 8192
"""Of prompts and of scored answers in one forward pass without gradients (engine/rewards.py, model/generation.py)."""
_DISK_FLOOR = 32 * 2**20
"""Tokenizer, manifest, metrics, pictures. Rows that a reject stage keeps come on top: how many is not known before."""


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
    def per_block(self) -> int:
        """Values a token that one block saves for its backward pass: in- and outputs of linear layers and norms."""
        return 10 * self.hidden + 4 * self.ffn + 2 * (self.heads + 2 * self.kv_heads) * self.head

    @property
    def parameters(self) -> int:
        return self.block_weights + self.other_weights


@dataclass(frozen=True)
class Estimate:
    """Bytes, but for `trainable`: how many parameters are trained. adapter: trained LoRA weights and their gradient.

    frozen: other adapters on the same base (reference, reward). cache: of answers being written: keys, values, logits.
    disk: the largest a run's folder gets.
    """

    trainable: int
    weights: float
    adapter: float
    frozen: float
    optimizer: float
    activations: float
    head: float
    cache: float
    disk: float

    @property
    def memory(self) -> float:
        """The peak: answers are written first and learnt from afterwards, so of the two the larger counts."""
        held = self.weights + self.adapter + self.frozen + self.optimizer
        return held + max(self.activations + self.head, self.cache)


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


def estimate(config: Mapping[str, Any], model: ModelSettings, adapter: AdapterSettings, stage: Stage) -> Estimate:
    """Peak memory of a stage, were all its rows max_length long: an upper bound for real rows."""
    shape = Shape.of(config)
    lora = lora_parameters(shape, adapter)
    wide = 4 if model.load_in == "fp32" or model.compute == "fp32" else 2
    block_bytes = {"nf4": _NF4_BITS / 8, "int8": 1, "bf16": 2, "fp32": 4}[model.load_in]
    dequantised = 3 * shape.hidden * shape.ffn * wide if model.load_in in ("nf4", "int8") else 0
    held = Estimate(
        trainable=0,
        weights=shape.block_weights * block_bytes + shape.other_weights * wide,
        adapter=0,
        frozen=_frozen_adapters(stage) * lora * 4,
        optimizer=0,
        activations=0,
        head=0,
        cache=_writing(stage, shape, model.max_length, wide) + dequantised if isinstance(stage, ScoredStage) else 0,
        disk=_DISK_FLOOR,
    )
    if isinstance(stage, RejectStage):
        return held
    if isinstance(stage, AverageStage):  # all of them lie on the base at once when the mean is proven
        together, result = _averaged(stage, shape, adapter, lora)
        return replace(held, frozen=(together + result) * 4, disk=result * 4 + _DISK_FLOOR)
    train = stage.train
    trainable = lora * (2 if isinstance(stage, PpoStage) else 1)  # PPO: policy and value
    rows = train.micro_batch_size * (2 if isinstance(stage, RewardStage | DpoStage) else 1)  # both answers of a pair
    tokens = rows * model.max_length
    blocks = (
        shape.layers * shape.hidden + shape.per_block
        if train.gradient_checkpointing
        else (shape.layers * shape.per_block)
    )
    head = 2 * 32 * 2**20 + tokens * shape.hidden * wide * 2
    if isinstance(stage, TrlOnlineStage):  # TRL makes the logits of all answers of a micro-batch, and their softmax
        head = rows * stage.max_new_tokens * shape.vocabulary * (wide + 4)
    state_bytes = 2 if "8bit" in train.optimizer else 8
    return replace(
        held,
        trainable=trainable,
        adapter=trainable * (4 + 4),
        optimizer=trainable * state_bytes,
        activations=tokens * blocks * wide + dequantised,
        head=head,
        disk=trainable * (4 + (4 + state_bytes) * (train.keep_checkpoints + 1)) + _DISK_FLOOR,
    )


def _frozen_adapters(stage: Stage) -> int:
    """How many adapters of other stages lie on the base while this one works."""
    count = 0
    if isinstance(stage, ScoredStage):
        count += (stage.reward is not None) + (stage.safety is not None)
    if isinstance(stage, RejectStage):
        return count + (stage.policy is not None)
    # The reference is the adapter that a stage starts from; of a fresh one it is the base itself.
    has_reference = isinstance(stage, PpoStage) or (isinstance(stage, DpoStage) and stage.loss not in ("simpo", "orpo"))
    has_reference = has_reference or (isinstance(stage, GrpoStage | RlooStage) and stage.kl > 0)
    return count + (has_reference and getattr(stage, "start_from", None) is not None)


def _writing(stage: ScoredStage, shape: Shape, max_length: int, wide: int) -> float:
    """Bytes while answers are written and scored: keys and values, three copies of the last logits, and one block's
    activations of the prompts, or of answers that are scored, which are taken in portions."""
    rows = stage.train.batch_size if isinstance(stage, TrlOnlineStage) else stage.rows_at_once  # TRL: all of a step
    keys_values = rows * max_length * shape.layers * 2 * shape.kv_heads * shape.head * wide
    logits = 3 * rows * shape.vocabulary * 4
    return keys_values + logits + max(_PORTION_TOKENS, max_length) * shape.per_block * wide


def _averaged(stage: AverageStage, shape: Shape, adapter: AdapterSettings, lora: int) -> tuple[int, int]:
    """LoRA parameters of the adapters together, and of their mean. A folder is taken to be of the recipe's rank."""
    together = lora * len(stage.of)
    if stage.rank is None:
        return together, together
    return together, lora_parameters(shape, adapter.model_copy(update={"rank": stage.rank}))
