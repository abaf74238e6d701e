"""What the parity tests of reward models and of preference learning share: a tiny base, both trainings, comparisons.

TRL's trainers are used as they come: they tokenise texts themselves, and our side is given the tokens they made, so
that both learn from the same rows by construction. Gradients are read on both sides by torch's optimizer hook, when the
optimiser is about to step. Everything is float32 on one CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tiny import LINES, tiny_llama3_tokenizer
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from finetune.data.comparisons import Comparisons
from finetune.data.store import pack
from finetune.engine import loop
from finetune.model import adapter
from finetune.model.base import choose_precision, load_base
from finetune.model.reward import add_head, new_head
from finetune.quiet import quiet_libraries
from finetune.recipe.settings import AdapterSettings
from finetune.recipe.train_settings import TrainSettings

quiet_libraries()
RATE = 1e-3
CPU = torch.device("cpu")
LORA_PARAMETERS = 2 * 2 * 7  # A and B of seven linears in two layers


@dataclass
class Followed:
    """What was seen of a training: every step's loss, the first step's gradients, the last weights."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


def make_base(folder: Path) -> Path:
    """A two-layer LLaMA with grouped queries, seeded random weights and a Llama-3-like tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_llama3_tokenizer(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=256,
        initializer_range=0.2,  # a random LLaMA at the usual 0.02 predicts the same for all words: nothing to compare
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def our_base(folder: Path) -> Any:
    return load_base(folder, choose_precision("fp32", "auto", CPU), CPU)


def make_adapter(base: Path, folder: Path, *, head: bool = False) -> Path:
    """A saved adapter where neither A nor B is zero, with a reward head where asked for."""
    settings = AdapterSettings(rank=4, alpha=8.0)
    model = adapter.new_adapter(our_base(base), settings, seed=5)
    with torch.no_grad():
        for name, parameter in adapter.trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    adapter.save_adapter(model, settings, folder, folder, base_name=str(base), revision=None)
    if head:
        add_head(folder, new_head(64, 3, CPU))
    return folder


def their_model(base: Path, start: Path, kind: type) -> Any:
    """The adapter on a model of transformers' own class, as any user of peft and TRL would load it."""
    from peft import PeftModel

    options = {"num_labels": 1} if "Sequence" in kind.__name__ else {}
    model = kind.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa", **options)
    return PeftModel.from_pretrained(model, start, is_trainable=True)


def tokenizer_of(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def their_config(kind: type, out: Path, steps: int, batch: int, **more: Any) -> Any:
    """A TRL config in float32 on the CPU that changes nothing but what is named."""
    return kind(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )


def train_theirs(trainer: Any, rename: Callable[[str], str] = lambda name: name) -> Followed:
    """Train and return what was seen. rename: the name of a parameter there → the name here."""
    followed = Followed()
    with _Watching(trainer.model, followed):
        trainer.train()
    followed.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    followed.weights = adapter.state(trainer.model)
    followed.gradients, followed.weights = (
        {rename(name): value for name, value in found.items()} for found in (followed.gradients, followed.weights)
    )
    return followed


def train_ours(model: nn.Module, work: loop.Work[Any], settings: TrainSettings, folder: Path) -> Followed:
    """The stage's own work through the engine's own loop."""
    followed = Followed()
    folder.mkdir(exist_ok=True)
    with _Watching(model, followed):
        loop.train(
            model,
            work,
            settings,
            peak_rate=RATE,
            accelerator=loop.make_accelerator(CPU),
            compute=torch.float32,
            folder=folder,
            title="ours",
        )
    followed.losses = [line["loss"] for line in loop.MetricsFile(folder / "metrics.jsonl").read()]
    followed.weights = adapter.state(model)
    return followed


class _Watching:
    """Keep the gradients of the first step that any torch optimiser takes."""

    def __init__(self, model: nn.Module, followed: Followed) -> None:
        self.model, self.followed = model, followed

    def __enter__(self) -> None:
        self.handle = register_optimizer_step_pre_hook(self._keep)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _keep(self, *_: object) -> None:
        if not self.followed.gradients:
            self.followed.gradients = {name: p.grad.clone() for name, p in adapter.trainable(self.model).items()}


def train_settings(steps: int, batch: int, layout: str, micro: int | None = None) -> TrainSettings:
    return TrainSettings(
        batch_size=batch,
        micro_batch_size=micro or batch,
        schedule="constant",
        warmup=0,
        max_grad_norm=None,
        layout=layout,
        max_steps=steps,
    )


def prepared(data: Comparisons) -> Any:
    """Comparisons in the order they stand, as the stages get them from data preparation."""
    return SimpleNamespace(train=data, held_out=None, epoch_order=lambda epoch: np.arange(len(data)), origin_of=str)


def comparisons(
    groups: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    *,
    margins: Sequence[float] | None = None,
    desirable: Sequence[bool] | None = None,
) -> Comparisons:
    """Groups of (prompt ids, answer ids), best first; or single answers with `desirable`."""
    rows = [([*prompt, *answer], [0] * len(prompt) + [1] * len(answer)) for group in groups for prompt, answer in group]
    tokens = pack(rows)
    starts = np.cumsum([0, *(len(group) for group in groups)]).astype(np.int64)
    return Comparisons(
        rows=tokens,
        starts=starts,
        prompt_lengths=np.array([len(prompt) for group in groups for prompt, _ in group], dtype=np.int64),
        margins=np.array(margins if margins is not None else [np.nan] * len(groups), dtype=np.float64),
        ratings=np.full(len(groups), -1, dtype=np.int8),
        desirable=np.array(desirable if desirable is not None else [-1] * len(groups), dtype=np.int8),
        formatted=np.zeros(len(tokens.ids), dtype=np.uint8),
        extra={},
    )


def texts(count: int, seed: int = 0, *, prompts: bool = True) -> list[dict[str, str]]:
    """Pairs of texts of very different lengths; with prompts=False all of the text is in the answers."""
    random = np.random.default_rng(seed)
    words = " ".join(LINES).split()

    def some(low: int, high: int) -> str:
        return " " + " ".join(random.choice(words, int(random.integers(low, high))))

    return [
        {"prompt": some(1, 30) if prompts else "", "chosen": some(1, 12), "rejected": some(1, 12)} for _ in range(count)
    ]


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def same_gradients(ours: Followed, theirs: Followed, limit: float = 1e-5, count: int = LORA_PARAMETERS) -> None:
    """Every parameter's gradient on its own, and none of them zero or left out."""
    assert len(theirs.gradients) == count
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        assert gradient.norm() > 1e-6, name
        assert relative(ours.gradients[name], gradient) < limit, name


def same_way(ours: Followed, theirs: Followed, start: Mapping[str, Tensor], steps: int) -> None:
    """Losses of every step, and the way that every weight went from `start`."""
    assert len(ours.losses) == len(theirs.losses) == steps
    assert len(set(theirs.losses)) == steps
    for step, (mine, other) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        assert abs(mine - other) <= 1e-5 * max(abs(other), 0.1), step
    for name, weight in theirs.weights.items():
        moved = weight - start[name]
        assert moved.norm() > 0.005, name
        assert relative(ours.weights[name] - start[name], moved) < 5e-4, name
