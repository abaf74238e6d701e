"""What is imported is not only right by the schema: its rows are read and it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Run, write_jsonl

ASKED = [{"question": f"What is {a} and {a}?", "reply": f"It is {2 * a}."} for a in range(12)]
PAIRS = [{"question": f"Name {a}.", "chosen": f"It is {a}, no other.", "rejected": f"Not {a + 1}."} for a in range(12)]
TALKS = [
    {
        "talk": [
            {"role": "user", "content": f"Is {a} even?"},
            {"role": "assistant", "content": "Yes." if a % 2 == 0 else "No."},
        ]
    }
    for a in range(12)
]


def begun(finetune: Run, config: dict[str, Any], kind: str, *more: str) -> str:
    """Import, check, and train for two steps; returns what the training printed."""
    Path("theirs.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert finetune("import", "theirs.yaml").code == 0
    checked = finetune("check", "recipe.yaml")
    assert (checked.code, checked.err) == (0, "")
    done = finetune(kind, "recipe.yaml", "--set", "model.load_in=fp32", *more)
    assert done.code == 0, done.err
    return done.out + done.err


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_from_llama_factory(finetune: Run, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "asked.json").write_text(json.dumps(ASKED))
    write_jsonl(tmp_path / "data" / "talks.jsonl", TALKS)
    registry = {
        "asked": {"file_name": "asked.json", "columns": {"prompt": "question", "response": "reply"}},
        "talks": {
            "file_name": "talks.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
        },
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(registry))
    config = {
        "model_name_or_path": str(tiny_base), "stage": "sft", "finetuning_type": "lora", "dataset": "asked,talks",
        "template": "llama3", "cutoff_len": 64, "max_samples": 8, "per_device_train_batch_size": 2, "max_steps": 2,
        "learning_rate": 1e-3,
    }  # fmt: skip
    begun(finetune, config, "sft")
    [manifest] = (tmp_path / "runs").rglob("manifest.json")
    assert json.loads(manifest.read_text())["kind"] == "sft"


def test_from_axolotl_and_torchtune(finetune: Run, tiny_base: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    config: dict[str, Any] = {
        "base_model": str(tiny_base), "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True,
        "rl": "dpo", "datasets": [{"path": "pairs.jsonl", "type": "llama3.intel"}], "sequence_len": 96, "max_steps": 2,
        "micro_batch_size": 2, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
    }  # fmt: skip
    begun(finetune, config, "dpo")
    (tmp_path / "recipe.yaml").unlink()
    write_jsonl(tmp_path / "asked.jsonl", ASKED)
    tune: dict[str, Any] = {
        "model": {
            "_component_": "torchtune.models.llama3_1.lora_llama3_1_8b",
            "lora_attn_modules": ["q_proj"],
            "lora_rank": 4,
        },
        "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "max_seq_len": 64},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(tiny_base),
        },
        "dataset": {
            "_component_": "torchtune.datasets.instruct_dataset",
            "source": "json",
            "data_files": "asked.jsonl",
            "column_map": {"input": "question", "output": "reply"},
        },
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "epochs": 1,
        "max_steps_per_epoch": 2,
        "batch_size": 4,
        "loss": {"_component_": "torchtune.modules.loss.LinearCrossEntropyLoss"},
    }
    begun(finetune, tune, "sft", "--runs", "others")
