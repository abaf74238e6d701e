"""The others in the speed benchmark, as their users write them: a plain Hugging Face loop, and TRL's SFTTrainer.

Run by sft_speed.py, one process each. Both read tokens.jsonl, so neither pays for tokenising. After every optimiser
step one JSON line with the loss goes to the steps file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finetune.quiet import quiet_libraries

BATCH = 8
SEED, RATE = 17, 2e-4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["plain", "trl", "trl-padding-free"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps_file", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    lines = (options.folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        row = json.loads(line)
        labels = [i if t else -100 for i, t in zip(row["ids"], row["trained"], strict=True)]
        rows.append({"input_ids": row["ids"], "labels": labels})
    if options.kind == "plain":
        _plain(options, rows)
    else:
        _trl(options, rows)


def _model(folder: Path) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(SEED)
    config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(base, config)


def _plain(options: argparse.Namespace, rows: list[dict[str, list[int]]]) -> None:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    model = _model(options.folder)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    for step in range(options.steps):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        ids = pad_sequence([torch.tensor(r["input_ids"]) for r in batch], batch_first=True)
        labels = pad_sequence([torch.tensor(r["labels"]) for r in batch], batch_first=True, padding_value=-100)
        mask = pad_sequence([torch.ones(len(r["input_ids"]), dtype=torch.long) for r in batch], batch_first=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        write_step(options.steps_file, step + 1, loss.item())
    model.save_pretrained(options.steps_file.with_name("adapter"))


def _trl(options: argparse.Namespace, rows: list[dict[str, list[int]]]) -> None:
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Lines(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                write_step(options.steps_file, state.global_step, logs["loss"])

    out = options.steps_file.with_name("trl")
    padding_free = options.kind == "trl-padding-free"
    config = SFTConfig(
        str(out),
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        max_length=None if padding_free else 1024,
        padding_free=padding_free,
        bf16=options.bf16,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=SEED,
    )
    from datasets import Dataset

    trainer = SFTTrainer(
        _model(options.folder),
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(options.folder / "base"),
        callbacks=[Lines()],
    )
    trainer.train()
    trainer.save_model(str(out))


def write_step(path: Path, step: int, loss: float) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "loss": loss}) + "\n")


if __name__ == "__main__":
    main()
