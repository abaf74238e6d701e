"""TRL's SFTTrainer, as it is, is the oracle: same base, adapter, rows and order give the same gradients and weights.

Gradients are read on both sides by torch's optimizer hook, when the optimiser is about to step: what is compared is
what each trainer really gives to AdamW. Everything is float32 on one CPU.

Measured (torch 2.13, trl 1.16, one thread): first losses apart by at most 8e-8 relative, the gradient of any one
parameter by 9e-7, whatever the layout and the cut; over ten steps losses by 1.3e-7, weights by 7e-7, and the way that
weights went by 1.3e-5 (AdamW divides small gradients by their own size, so rounding in them shows). The limits below
leave room for other CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_llama3_tokenizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from finetune.data.encode import encode
from finetune.data.store import TokenRows, pack
from finetune.data.tokenizer import Tokenizer
from finetune.engine import loop
from finetune.families.llama3 import LLAMA3
from finetune.model import adapter
from finetune.model.base import choose_precision, load_base
from finetune.quiet import quiet_libraries
from finetune.recipe.settings import AdapterSettings
from finetune.recipe.train_settings import TrainSettings
from finetune.shapes import Dialog, Message
from finetune.stages.sft import sft_work

quiet_libraries()
RATE = 1e-3
CPU = torch.device("cpu")
Row = tuple[list[int], list[int]]  # ids, trained


@dataclass
class Followed:
    """What was seen of a training: every step's loss, the first step's gradients, the last weights."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, adapter): a two-layer GQA LLaMA with a tokenizer, and LoRA weights where neither A nor B is zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tiny_llama3_tokenizer(tmp_path_factory.mktemp("base"))
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
    LlamaForCausalLM(config).save_pretrained(base)
    settings = AdapterSettings(rank=4, alpha=8.0)
    model = adapter.new_adapter(_base(base), settings, seed=5)
    with torch.no_grad():
        for name, parameter in adapter.trainable(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    start = tmp_path_factory.mktemp("adapter")
    adapter.save_adapter(model, settings, start, start, base_name=str(base), revision=None)
    return base, start


def _base(folder: Path) -> torch.nn.Module:
    return load_base(folder, choose_precision("fp32", "auto", CPU), CPU)


def _rows(count: int, seed: int = 0) -> list[Row]:
    """Rows of 2 to 90 tokens, of which a varying part at the end is trained, as an answer is."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(random.integers(2, 90))
        prompt = int(random.integers(1, length))
        rows.append((random.integers(0, 480, length).tolist(), [0] * prompt + [1] * (length - prompt)))
    return rows


def _watch(model: torch.nn.Module, followed: Followed) -> Callable[..., None]:
    """A hook for torch's optimizers that keeps the first step's gradients."""

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if not followed.gradients:
            followed.gradients = {name: p.grad.clone() for name, p in adapter.trainable(model).items()}

    return keep


def _train_ours(
    folders: tuple[Path, Path],
    rows: list[Row],
    work_folder: Path,
    *,
    steps: int,
    layout: str = "ragged",
    batch: int = 8,
    micro: int = 8,
    clip: float | None = None,
) -> Followed:
    """The stage's own work through the engine's own loop."""
    base = _base(folders[0])
    model = adapter.open_adapter(base, folders[1])
    settings = TrainSettings(
        batch_size=batch,
        micro_batch_size=micro,
        schedule="constant",
        warmup=0,
        max_grad_norm=clip,
        layout=layout,
        max_steps=steps,
    )
    tokens: TokenRows = pack(rows)
    data = SimpleNamespace(train=tokens, held_out=None, epoch_order=lambda epoch: np.arange(len(rows)))
    work = sft_work(data, settings, base.model, base.lm_head, steps)
    followed = Followed()
    work_folder.mkdir(exist_ok=True)
    handle = register_optimizer_step_pre_hook(_watch(model, followed))
    try:
        loop.train(
            model,
            work,
            settings,
            peak_rate=RATE,
            accelerator=loop.make_accelerator(CPU),
            compute=torch.float32,
            folder=work_folder,
            title="ours",
        )
    finally:
        handle.remove()
    followed.losses = [line["loss"] for line in loop.MetricsFile(work_folder / "metrics.jsonl").read()]
    followed.weights = adapter.state(model)
    return followed


def _train_trl(
    folders: tuple[Path, Path],
    rows: list[Row] | list[dict[str, object]],
    out: Path,
    *,
    steps: int,
    micro: int = 8,
    accumulate: int = 1,
    clip: float | None = None,
    chat_template: str | None = None,
) -> Followed:
    """TRL's trainer. rows: tokens with a mask, or with `chat_template` conversations that TRL tokenises and masks."""
    from peft import PeftModel
    from transformers import AutoTokenizer, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    if chat_template is None:
        rows = [
            {"input_ids": ids, "labels": [i if t else -100 for i, t in zip(ids, trained, strict=True)]}
            for ids, trained in rows
        ]
    from datasets import Dataset

    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    tokenizer.chat_template = chat_template
    base = LlamaForCausalLM.from_pretrained(folders[0], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folders[1], is_trainable=True)
    trainer = SFTTrainer(
        model,
        SFTConfig(
            str(out),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulate,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            optim="adamw_torch",
            max_grad_norm=clip or 0.0,
            train_sampling_strategy="sequential",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            assistant_only_loss=chat_template is not None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    followed = Followed()
    handle = register_optimizer_step_pre_hook(_watch(model, followed))
    try:
        trainer.train()
    finally:
        handle.remove()
    followed.losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    followed.weights = adapter.state(model)
    return followed


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _same_gradients(ours: Followed, theirs: Followed, limit: float) -> None:
    """Every parameter's gradient on its own, and none of them zero or left out."""
    assert len(theirs.gradients) == 2 * 2 * 7  # A and B of seven linears in two layers
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        assert gradient.norm() > 1e-6, name
        assert _relative(ours.gradients[name], gradient) < limit, name


@pytest.fixture(scope="module")
def one_step_of_trl(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Followed:
    return _train_trl(folders, _rows(8), tmp_path_factory.mktemp("trl"), steps=1)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_first_loss_and_every_lora_gradient(folders, one_step_of_trl, tmp_path, layout):
    ours = _train_ours(folders, _rows(8), tmp_path, steps=1, layout=layout)
    assert ours.losses[0] == pytest.approx(one_step_of_trl.losses[0], rel=1e-5)
    _same_gradients(ours, one_step_of_trl, 1e-5)


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_accumulation_changes_nothing(folders, one_step_of_trl, tmp_path, micro, layout):
    """8 = 2 x 4 = 4 x 2, though the parts hold different numbers of trained tokens; both equal TRL's undivided 8."""
    whole = _train_ours(folders, _rows(8), tmp_path / "whole", steps=1, layout=layout)
    parts = _train_ours(folders, _rows(8), tmp_path / "parts", steps=1, layout=layout, micro=micro)
    assert parts.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)
    _same_gradients(parts, whole, 1e-5)
    _same_gradients(parts, one_step_of_trl, 1e-5)


def test_trl_accumulates_to_the_same(folders, tmp_path):
    """TRL's own way from 2 x 4 to 8 lands where ours does: it too divides by the whole step's trained tokens."""
    ours = _train_ours(folders, _rows(8), tmp_path / "ours", steps=1, micro=2)
    theirs = _train_trl(folders, _rows(8), tmp_path / "trl", steps=1, micro=2, accumulate=4)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    _same_gradients(ours, theirs, 1e-5)


@pytest.fixture(scope="module")
def ten_steps_of_trl(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Followed:
    return _train_trl(folders, _rows(40), tmp_path_factory.mktemp("trl10"), steps=10, micro=4, clip=0.05)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_ten_steps_stay_together(folders, ten_steps_of_trl, tmp_path, layout):
    """Constant rate, AdamW, and clipping that bites (the last assertion)."""
    start = adapter.state(adapter.open_adapter(_base(folders[0]), folders[1]))
    ours = _train_ours(folders, _rows(40), tmp_path, steps=10, batch=4, micro=2, layout=layout, clip=0.05)
    theirs = ten_steps_of_trl
    assert len(ours.losses) == len(theirs.losses) == 10
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert len(set(ours.losses)) == 10
    for name, weight in theirs.weights.items():
        moved = weight - start[name]
        assert moved.norm() > 0.01, name  # ten steps of 1e-3 go a long way
        assert _relative(ours.weights[name] - start[name], moved) < 2e-4, name
    norm = torch.stack([g.norm() for g in theirs.gradients.values()]).norm().item()
    assert norm == pytest.approx(0.05, rel=1e-3)  # the hook sees gradients after clipping: they were longer


# Llama 3's form as its documentation gives it, with the marks from which TRL reads what an assistant said.
_LLAMA3_MARKED = """{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\n\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content ~ '<|eot_id|>' -}}{%- endgeneration -%}
{%- else -%}{{- message.content ~ '<|eot_id|>' -}}{%- endif -%}
{%- endfor -%}"""


def test_conversations_from_text_to_gradient(folders, tmp_path):
    """The whole way twice: our rendering, tokens and mask against TRL's from a marked chat template."""
    dialogs = [
        [
            ("user", "What is the capital of France?"),
            ("assistant", "The capital of France is Paris."),
        ],
        [
            ("system", "You can call these functions."),
            ("user", "Tell me about the llama."),
            ("assistant", "Once upon a time there was a little llama."),
            ("user", "Did it sing?"),
            ("assistant", "The llama liked to sing in the rain."),
        ],
    ]
    examples = [Dialog(tuple(Message(role, content) for role, content in dialog)) for dialog in dialogs]
    encoded = encode(examples, LLAMA3, Tokenizer.load(folders[0]))
    ours = _train_ours(folders, [(e.input_ids, e.trained) for e in encoded], tmp_path / "ours", steps=1)
    messages = [{"messages": [{"role": r, "content": c} for r, c in dialog]} for dialog in dialogs]
    theirs = _train_trl(folders, messages, tmp_path / "trl", steps=1, chat_template=_LLAMA3_MARKED)
    assert ours.losses[0] == pytest.approx(theirs.losses[0], rel=1e-5)
    _same_gradients(ours, theirs, 1e-5)
