"""TRL's DPOTrainer and RewardTrainer in the pairs benchmark, as their users write them, on tokens.

Run by pairs_speed.py, one process each. Both read tokens.jsonl. RewardTrainer takes tokens as they are; DPOTrainer
tokenises texts whatever it is given, so its own collator is handed the tokens of tokens.jsonl instead. The reward head
starts as ours does, since losses are compared. After every optimiser step one JSON line goes to the steps file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from peers import SEED, write_step

from finetune.quiet import quiet_libraries

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["dpo", "reward"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps_file", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--micro", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    options = parser.parse_args()
    quiet_libraries()
    lines = (options.folder / "tokens.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    trainer = _dpo(options, pairs) if options.kind == "dpo" else _reward(options, pairs)
    trainer.train()
    trainer.save_model(str(options.steps_file.with_name("trl")))


def _dpo(options: argparse.Namespace, pairs: list[dict[str, list[int]]]) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    tokenizer = _tokenizer(options.folder)
    collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)

    def of_tokens(examples: list[dict[str, Any]]) -> Any:
        return collator([json.loads(example["tokens"]) for example in examples])

    rows = [{"prompt": "", "chosen": "", "rejected": "", "tokens": json.dumps(pair)} for pair in pairs]
    config = DPOConfig(**_settings(options), remove_unused_columns=False)
    return DPOTrainer(
        _model(options.folder, "AutoModelForCausalLM"),
        args=config,
        data_collator=of_tokens,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_lines(options.steps_file)],
    )


def _reward(options: argparse.Namespace, pairs: list[dict[str, list[int]]]) -> Any:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [
        {f"{side}_ids": pair["prompt_ids"] + pair[f"{side}_ids"] for side in ("chosen", "rejected")} for pair in pairs
    ]
    return RewardTrainer(
        _model(options.folder, "AutoModelForSequenceClassification"),
        args=RewardConfig(**_settings(options)),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(options.folder),
        callbacks=[_lines(options.steps_file)],
    )


def _model(folder: Path, kind: str) -> Any:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from finetune.model.reward import new_head

    reward = kind == "AutoModelForSequenceClassification"
    labels = {"num_labels": 1} if reward else {}
    base = getattr(transformers, kind).from_pretrained(folder / "base", dtype=torch.float32, **labels)
    if reward:
        base.score.load_state_dict(new_head(base.config.hidden_size, SEED, torch.device("cpu")).state_dict())
    torch.manual_seed(SEED)
    config = LoraConfig(
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules=LINEARS,
        modules_to_save=["score"] if reward else None,
    )
    return get_peft_model(base, config)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    # A pad token of its own: by default it would be the end token, and a classifier scores the last token that is not
    # padding, so TRL's reward model would read its score one token early.
    return AutoTokenizer.from_pretrained(folder / "base", pad_token="<unk>")


def _lines(steps_file: Path) -> Any:
    from transformers import TrainerCallback

    class Lines(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                write_step(steps_file, state.global_step, logs["loss"])

    return Lines()


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": str(options.steps_file.with_name("trl")),
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.micro,
        "gradient_accumulation_steps": options.batch // options.micro,
        "learning_rate": options.rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "max_length": 1024,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": SEED,
    }


if __name__ == "__main__":
    main()
