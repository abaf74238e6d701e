"""Make the quickstart model: write its text, train its tokenizer on it, pre-train a tiny LLaMA, save all of it.

    python scripts/quickstart_base.py               # models/quickstart and datasets/quickstart
    python scripts/quickstart_base.py --data-only   # datasets/quickstart alone, in a second

Ordinary pre-training at toy size: next-token prediction on documents laid end to end, begin_of_text before and
end_of_text after each, one pass over text that is generated as it is needed (no row is seen twice). Matrices of the
blocks are updated by Muon (Jordan 2024, torch's own), embeddings and norms by AdamW. The chat tokens are in the
vocabulary, as in a Llama 3 base, and occur nowhere in the text.

The result depends on the seed, the versions of torch and tokenizers, and the machine's arithmetic; the data depend on
the seed alone.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from quickstart_world import SEED, build_world, documents, held_out_rows, training_rows

ROOT = Path(__file__).resolve().parent.parent
MODEL, DATA = ROOT / "models" / "quickstart", ROOT / "datasets" / "quickstart"

VOCABULARY = 1536  # tokens, the special ones included
HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 192, 512, 4, 6, 2  # widths are multiples of nf4's block of 64
CONTEXT = 256  # tokens in a training row; positions are declared up to 512
ROWS = 16  # rows in a step
STEPS = 2000
RATE = 4e-3  # peak learning rate of both optimisers: Muon's update is scaled to AdamW's size
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
BEGIN, END, PAD = SPECIAL[:3]
STOPS = (END, "<|eom_id|>", "<|eot_id|>")
# How Llama 3 cuts text before BPE (tiktoken's pattern in Meta's llama3/tokenizer.py): words, up to three digits, signs.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_data(folder: Path) -> None:
    """Write the instruction data: sft.jsonl to train on, held_out.jsonl to measure on."""
    world = build_world()
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("sft", training_rows(world)), ("held_out", held_out_rows(world))):
        text = "".join(json.dumps({"messages": row.messages}, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def train_tokenizer() -> Any:
    """A byte-level BPE in Llama 3's form, learned from 4,000 documents; the special tokens have the last ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    by_words = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_words, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = documents(build_world(), random.Random(f"{SEED} tokenizer"))
    tokenizer.train_from_iterator((next(stream) for _ in range(4000)), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN}:1 $B:1",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


def token_rows(tokenizer: Any, seed: str) -> Iterator[list[int]]:
    """Endless rows of CONTEXT ids: documents laid end to end and cut."""
    stream = documents(build_world(), random.Random(seed))
    end = tokenizer.token_to_id(END)
    left: list[int] = []
    while True:
        for encoded in tokenizer.encode_batch([next(stream) for _ in range(256)]):
            left += [*encoded.ids, end]
        while len(left) >= CONTEXT:
            yield left[:CONTEXT]
            left = left[CONTEXT:]


def build_model(tokenizer: Any) -> Any:
    """A LlamaForCausalLM with random weights from torch's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=[tokenizer.token_to_id(token) for token in STOPS],
        pad_token_id=tokenizer.token_to_id(PAD),
        # On a CPU, with heads of 32 and rows of 256, forward and backward are about 15 % faster than with sdpa.
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def mean_loss(model: Any, rows: Any) -> Any:
    """Next-token loss in nats, averaged over rows [B, CONTEXT]; matrix products in bf16."""
    import torch

    with torch.autocast(rows.device.type, torch.bfloat16):
        logits = model(rows, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), rows[:, 1:].flatten())


def pretrain(model: Any, tokenizer: Any, steps: int) -> list[float]:
    """Train in place; returns the loss of every step, in nats a token."""
    import torch

    blocks = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in blocks}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    optimizers = [
        torch.optim.Muon(blocks, lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    stream = token_rows(tokenizer, f"{SEED} text")
    losses = []
    start = time.perf_counter()
    for step in range(steps):
        warm_up, done = min((step + 1) / 50, 1.0), step / steps
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = RATE * warm_up * (1 + math.cos(math.pi * done)) / 2
        loss = mean_loss(model, torch.tensor([next(stream) for _ in range(ROWS)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.perf_counter() - start
            speed = (step + 1) * ROWS * CONTEXT / seconds
            print(f"step {step + 1}/{steps}  loss {mean(losses[-50:]):.4f}  {speed:,.0f} tokens/s", flush=True)
    return losses


def held_back_loss(model: Any, tokenizer: Any) -> float:
    """Loss in nats a token on 64 rows of text that was not trained on."""
    import torch

    stream = token_rows(tokenizer, f"{SEED} held back")
    with torch.inference_mode():
        return float(mean_loss(model, torch.tensor([next(stream) for _ in range(64)])))


def redraw_chat_tokens(model: Any, tokenizer: Any) -> None:
    """Give each special token that no text holds an embedding of its own, in place.

    Tokens that never occur are only ever pushed down, all along one line: after training their rows are equal (cosine
    1.00), and LoRA, which leaves the tied embeddings alone, could not tell <|eot_id|> from the others: it would never
    stop with any certainty. A random row, 0.1 a component, is about as long as a trained word's and changes the loss on
    text by less than 0.001 nats.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    rows = model.get_input_embeddings().weight.data
    for token in SPECIAL:
        if token not in (BEGIN, END):
            rows[tokenizer.token_to_id(token)] = 0.1 * torch.randn(HIDDEN, generator=generator)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights in bf16, the configs and the tokenizer, as a Llama 3 base on the hub has them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.config._attn_implementation = "sdpa"
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "bos_token": BEGIN,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-only", action="store_true", help="write datasets/quickstart alone")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps of pre-training (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (%(default)s)")
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the instruction data")
    arguments = parser.parse_args()
    write_data(arguments.data)
    if arguments.data_only:
        return

    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    start = time.perf_counter()
    tokenizer = train_tokenizer()
    model = build_model(tokenizer)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {tokenizer.get_vocab_size()} tokens")
    losses = pretrain(model, tokenizer, arguments.steps)
    redraw_chat_tokens(model, tokenizer)
    save(model, tokenizer, arguments.model)
    print(
        f"seed {SEED}; {arguments.steps} steps of {ROWS} x {CONTEXT} tokens, "
        f"{arguments.steps * ROWS * CONTEXT / 1e6:.1f}M in all; loss {losses[0]:.3f} at the first step, "
        f"{mean(losses[-50:]):.3f} over the last 50, {held_back_loss(model, tokenizer):.3f} on text held back; "
        f"{(time.perf_counter() - start) / 60:.1f} minutes on {arguments.threads} threads\n"
        f"torch {torch.__version__}, transformers {transformers.__version__}, tokenizers {tokenizers.__version__}, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
