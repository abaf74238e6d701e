"""Small configurations of the four tools, written for these tests, and how they are imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune.migrate.account import Account, Fate
from finetune.migrate.migrate import migrate
from finetune.recipe.load import load_recipe
from finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class Imported:
    recipe: Recipe
    text: str
    account: Account
    wrong: tuple[str, ...]

    def fate(self, key: str) -> Fate:
        return next(told.fate for told in self.account.told.values() if told.key == key)

    def note(self, key: str) -> str:
        return next(told.note for told in self.account.told.values() if told.key == key)

    @property
    def decide(self) -> str:
        """All that is to be decided, as one text."""
        return "\n".join(f"{told.key} {told.note}" for told in self.account.of(Fate.DECIDE))

    @property
    def stage(self) -> Any:
        return next(iter(self.recipe.stages.values()))


def imported(
    folder: Path,
    config: Mapping[str, Any] | str,
    *,
    name: str = "theirs.yaml",
    out: str = "recipe.yaml",
    **options: Any,
) -> Imported:
    """Import a configuration that lies in `folder`, write the recipe there and load it again."""
    theirs = folder / name
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text(config if isinstance(config, str) else yaml.safe_dump(dict(config), sort_keys=False), "utf-8")
    target = folder / out
    target.parent.mkdir(parents=True, exist_ok=True)
    found = migrate(theirs, target, **options)
    target.write_text(found.text, encoding="utf-8")
    return Imported(load_recipe(target).recipe, found.text, found.account, found.wrong)


def without(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def names(value: Any) -> Iterator[str]:
    """Every key of a configuration, nested ones too."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner)


AXOLOTL: dict[str, Any] = {
    "base_model": "meta-llama/Llama-3.1-8B",
    "load_in_4bit": True,
    "adapter": "qlora",
    "lora_r": 16,
    "lora_alpha": 24,
    "lora_dropout": 0.05,
    "lora_target_modules": ["q_proj", "v_proj"],
    "chat_template": "llama3",
    "datasets": [
        {
            "path": "org/chats",
            "type": "chat_template",
            "split": "train",
            "field_messages": "conversations",
            "message_property_mappings": {"role": "from", "content": "value"},
        }
    ],
    "val_set_size": 0.1,
    "sequence_len": 2048,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "num_epochs": 3,
    "learning_rate": 2e-4,
    "lr_scheduler": "linear",
    "warmup_ratio": 0.1,
    "optimizer": "paged_adamw_8bit",
    "weight_decay": 0.01,
    "bf16": "auto",
    "gradient_checkpointing": True,
    "flash_attention": True,
    "deepspeed": "deepspeed_configs/zero2.json",
    "wandb_project": "chats",
    "wandb_entity": None,
    "special_tokens": {"pad_token": "<|end_of_text|>"},
    "output_dir": "./out",
}
LLAMA_FACTORY: dict[str, Any] = {
    "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
    "quantization_bit": 4,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "house,garden",
    "template": "llama3",
    "cutoff_len": 1024,
    "max_samples": 500,
    "output_dir": "saves/x",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "num_train_epochs": 2.0,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "bf16": True,
    "ddp_timeout": 180000000,
    "val_size": 0.05,
    "eval_strategy": "steps",
    "eval_steps": 50,
}
DATASET_INFO: dict[str, Any] = {
    "house": {"file_name": "house.json", "columns": {"prompt": "question", "response": "reply"}},
    "garden": {
        "file_name": "garden.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "pairs": {"hf_hub_url": "org/pairs", "ranking": True, "formatting": "sharegpt", "split": "train_prefs"},
    "plain_pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "better", "rejected": "worse"}},
    "judged": {
        "file_name": "judged.json",
        "columns": {"prompt": "instruction", "response": "output", "kto_tag": "good"},
    },
    "books": {"file_name": "books.jsonl", "columns": {"prompt": "body"}},
}
TORCHTUNE = """\
output_dir: /tmp/tune
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: ${checkpointer.checkpoint_dir}/original/tokenizer.model
  max_seq_len: 2048
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: base
  checkpoint_files: [model-00001-of-00002.safetensors, model-00002-of-00002.safetensors]
  recipe_checkpoint: null
  output_dir: ${output_dir}
  model_type: LLAMA3
resume_from_checkpoint: False
dataset:
  _component_: torchtune.datasets.instruct_dataset
  source: json
  data_files: rows.json
  column_map: {input: question, output: answer}
  split: train
  packed: False
seed: 7
shuffle: True
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
epochs: 3
max_steps_per_epoch: 25
gradient_accumulation_steps: 16
compile: False
metric_logger:
  _component_: torchtune.training.metric_logging.DiskLogger
  log_dir: ${output_dir}/logs
log_every_n_steps: 1
device: cpu
dtype: bf16
enable_activation_checkpointing: True
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: False
  wait_steps: 5
"""
TRL: dict[str, Any] = {
    "model_name_or_path": "meta-llama/Llama-3.2-1B-Instruct",
    "dataset_name": "org/rows",
    "dataset_config": "en",
    "dataset_train_split": "train_sft",
    "dataset_test_split": "test_sft",
    "use_peft": True,
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_target_modules": "all-linear",
    "load_in_4bit": True,
    "assistant_only_loss": True,
    "max_length": 2048,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 200,
    "push_to_hub": True,
    "attn_implementation": "flash_attention_2",
    "report_to": "wandb",
    "seed": 3,
}
