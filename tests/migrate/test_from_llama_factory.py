from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from migrate_lab import DATASET_INFO, LLAMA_FACTORY, imported, without

from finetune.data.fitting import FORMATS
from finetune.errors import InputError, RecipeError
from finetune.migrate.account import Fate


@pytest.fixture(autouse=True)
def _registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which their command is run, with data/dataset_info.json and the files it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(DATASET_INFO))
    for name in ("house.json", "garden.jsonl", "pairs.json", "judged.json", "books.jsonl"):
        (tmp_path / "data" / name).write_text("[]")


def test_sft_values_are_theirs(tmp_path: Path) -> None:
    found = imported(tmp_path, LLAMA_FACTORY)
    recipe, stage, train = found.recipe, found.stage, found.stage.train
    assert (recipe.model.load_in, recipe.model.max_length, recipe.model.template) == ("nf4", 1024, "llama3")
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.targets) == (
        8,
        16,
        "all-linear",
    )  # alpha 2 x rank
    assert [data.path for data in stage.data] == ["./data/house.json", "./data/garden.jsonl"]
    assert [data.format for data in stage.data] == ["alpaca", "messages"]
    assert stage.data[0].fields == {"instruction": "question", "output": "reply"}
    assert [data.take for data in stage.data] == [500, 500]
    assert (train.batch_size, train.micro_batch_size) == (2 * 4, 2)
    assert (train.epochs, train.learning_rate, train.schedule, train.warmup) == (2, 1e-4, "cosine", 20)
    assert (stage.held_out.fraction, train.eval_every) == (0.05, 50)
    assert stage.too_long == "truncate"  # cutoff_len cuts
    assert train.gradient_checkpointing is True  # its default
    assert found.wrong == ()
    assert found.decide == ""


def test_defaults_that_differ_from_ours_are_written_out(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        {"model_name_or_path": "org/llama", "stage": "sft", "dataset": "house", "finetuning_type": "lora"},
    )
    train = found.stage.train
    assert (found.recipe.model.load_in, found.recipe.model.max_length, found.recipe.seed) == ("bf16", 2048, 42)
    assert (found.recipe.adapter.rank, found.recipe.adapter.alpha, found.recipe.adapter.dropout) == (8, 16, 0)
    assert (train.epochs, train.learning_rate, train.schedule, train.warmup) == (3, 5e-5, "linear", 0)
    assert (train.batch_size, train.micro_batch_size) == (8, 8)
    assert found.stage.held_out.fraction == 0


def test_dpo(tmp_path: Path) -> None:
    extra = {"stage": "dpo", "dataset": "pairs", "pref_beta": 0.2, "pref_ftx": 0.5, "pref_loss": "simpo",
             "simpo_gamma": 1.2, "lora_dropout": 0.1, "adapter_name_or_path": "./saves/sft"}  # fmt: skip
    found = imported(tmp_path, {**LLAMA_FACTORY, **extra})
    stage = found.stage
    assert (stage.kind, stage.loss, stage.beta, stage.nll_weight, stage.simpo_margin) == ("dpo", "simpo", 0.2, 0.5, 1.2)
    [data] = stage.data
    assert (data.hub, data.split, data.format, data.fields) == ("org/pairs", "train_prefs", "sharegpt_pairs", {})
    assert found.recipe.adapter.dropout == 0
    assert stage.start_from == "./saves/sft"
    assert stage.too_long == "drop"


def test_reward(tmp_path: Path) -> None:
    stage = imported(tmp_path, {**LLAMA_FACTORY, "stage": "rm", "dataset": "plain_pairs"}).stage
    assert stage.kind == "reward"
    assert stage.data[0].format == "pairs"
    assert stage.data[0].fields == {"chosen": "better", "rejected": "worse", "prompt": "instruction"}


def test_kto(tmp_path: Path) -> None:
    extra = {"stage": "kto", "dataset": "judged", "per_device_train_batch_size": 1, "kto_rejected_weight": 1.5}
    found = imported(tmp_path, {**LLAMA_FACTORY, **extra})
    stage = found.stage
    assert (stage.kind, stage.loss, stage.beta, stage.kto_weights) == ("dpo", "kto", 0.1, (1.0, 1.5))
    assert (stage.train.micro_batch_size, stage.train.batch_size) == (2, 4)  # 1 x 4, two at once for kto
    assert stage.data[0].fields == {"label": "good", "prompt": "instruction", "completion": "output"}


def test_ppo(tmp_path: Path) -> None:
    extra = {"stage": "ppo", "reward_model": "saves/reward", "ppo_buffer_size": 4, "ppo_epochs": 2, "top_p": 0.9,
             "max_new_tokens": 128, "max_steps": 60}  # fmt: skip
    found = imported(tmp_path, {**without(LLAMA_FACTORY, "val_size", "eval_strategy", "eval_steps"), **extra})
    stage = found.stage
    assert (stage.kind, stage.reward, stage.passes, stage.iterations) == ("ppo", "saves/reward", 2, 60)
    assert (stage.train.batch_size, stage.rollouts) == (8, 32)
    assert (stage.temperature, stage.top_p, stage.top_k, stage.max_new_tokens) == (0.95, 0.9, 50, 128)
    assert (stage.kl, stage.target_kl, stage.whiten_scores) == (0.2, 6.0, False)
    assert "train one here" in found.decide


def test_pre_training_is_raw_text(tmp_path: Path) -> None:
    found = imported(tmp_path, {**LLAMA_FACTORY, "stage": "pt", "dataset": "books"})
    assert (found.stage.kind, found.stage.data[0].format) == ("sft", "text")
    assert found.stage.data[0].fields == {"text": "body"}
    assert "packs text" in found.decide


@pytest.mark.parametrize("kind", ["full", "freeze", "oft"])
def test_other_ways_to_train_are_told(tmp_path: Path, kind: str) -> None:
    found = imported(tmp_path, {**LLAMA_FACTORY, "finetuning_type": kind})
    assert ("trains all weights" if kind != "oft" else "oft is not here") in found.decide
    assert (found.stage.train.learning_rate == "auto") == (kind != "oft")


def test_fields_are_ones_that_the_format_has(tmp_path: Path) -> None:
    stages = {"pairs": "dpo", "plain_pairs": "rm", "judged": "kto", "books": "pt"}
    for name in DATASET_INFO:
        for data in imported(tmp_path, {**LLAMA_FACTORY, "stage": stages.get(name, "sft"), "dataset": name}).stage.data:
            assert set(data.fields) <= set(FORMATS[data.format].names), (name, data)


def test_without_the_registry_the_names_are_to_be_decided(tmp_path: Path) -> None:
    (tmp_path / "data" / "dataset_info.json").unlink()
    found = imported(tmp_path, LLAMA_FACTORY)
    assert [data.path for data in found.stage.data] == ["data/house.json", "data/garden.json"]
    assert "no data/dataset_info.json from here" in found.decide
    online = imported(tmp_path, {**LLAMA_FACTORY, "dataset_dir": "ONLINE", "dataset": "org/rows"})
    assert online.stage.data[0].hub == "org/rows"
    (tmp_path / "data" / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset_info\.json: not valid JSON"):
        imported(tmp_path, LLAMA_FACTORY)


def test_a_name_that_the_registry_does_not_have(tmp_path: Path) -> None:
    found = imported(tmp_path, {**LLAMA_FACTORY, "dataset": "house,cellar"})
    assert "cellar: not in" in found.decide
    assert "house: " not in found.decide


def test_evaluation_rows_of_their_own(tmp_path: Path) -> None:
    found = imported(tmp_path, {**without(LLAMA_FACTORY, "val_size"), "eval_dataset": "garden"})
    assert [data.path for data in found.stage.held_out.data] == ["./data/garden.jsonl"]
    assert found.stage.held_out.data[0].take is None


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"stage": "dpe"}, "unknown stage: dpe"),
        ({"stage": "ppo"}, "stage: ppo needs reward_model"),
        ({"dataset": None}, "names no training rows (dataset)"),
        ({"dataset": None, "export_dir": "out"}, "this file exports a model: `finetune merge`"),
        ({"dataset": None, "infer_backend": "vllm"}, "this file is for inference"),
        ({"do_train": None, "do_predict": True, "dataset": None}, "this file measures a model: `finetune eval`"),
        ({"cutoff_len": "long"}, "cutoff_len: expected a number"),
        ({"warmup_steps": None, "warmup_ratio": 3}, "expected a share below 1; found 3"),
    ],
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, extra: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, {**LLAMA_FACTORY, **extra})
    assert words in str(caught.value)


def test_other_words(tmp_path: Path) -> None:
    extra = {"train_on_prompt": True, "mask_history": False, "packing": True, "disable_gradient_checkpointing": True,
             "flash_attn": "fa2", "enable_liger_kernel": True, "report_to": ["wandb", "tensorboard"],
             "neftune_noise_alpha": 5, "additional_target": "embed_tokens,lm_head", "use_dora": True,
             "hf_hub_token": "hf_abcdefghijklmnop"}  # fmt: skip
    found = imported(tmp_path, {**LLAMA_FACTORY, **extra})
    assert found.stage.loss_on == "all"
    assert found.stage.train.gradient_checkpointing is False
    assert found.recipe.adapter.modules_to_save == ["embed_tokens", "lm_head"] and found.recipe.adapter.dora
    assert found.recipe.track.wandb is not None and found.recipe.track.tensorboard
    assert found.fate("flash_attn") is Fate.LEFT_OUT and found.fate("neftune_noise_alpha") is Fate.DECIDE
    assert "hf_abc" not in found.text
