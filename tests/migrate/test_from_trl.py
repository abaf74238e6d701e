from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from migrate_lab import TRL, imported, without

from finetune.errors import RecipeError
from finetune.migrate.account import Fate

DPO = {**without(TRL, "assistant_only_loss", "dataset_config"), "beta": 0.05, "lora_dropout": 0.1}


def test_sft_values_are_theirs(tmp_path: Path) -> None:
    found = imported(tmp_path, TRL)
    recipe, stage, train = found.recipe, found.stage, found.stage.train
    assert (recipe.model.base, recipe.model.load_in) == ("meta-llama/Llama-3.2-1B-Instruct", "nf4")
    assert (recipe.model.max_length, recipe.model.template, recipe.seed) == (2048, "auto", 3)
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.targets) == (32, 16, "all-linear")
    assert recipe.adapter.dropout == 0.05  # TRL's default
    [data] = stage.data
    assert (data.hub, data.subset, data.split) == ("org/rows", "en", "train_sft")
    assert [test.split for test in stage.held_out.data] == ["test_sft"]
    assert (stage.kind, stage.loss_on, stage.too_long) == ("sft", "answers", "truncate")
    assert (train.batch_size, train.micro_batch_size, train.epochs) == (8, 4, 1)
    assert (train.learning_rate, train.schedule, train.warmup) == (2e-4, "constant", 5)
    assert (train.eval_every, train.checkpoint_every, train.gradient_checkpointing) == (100, 200, True)
    assert recipe.track.wandb is not None
    assert found.decide == ""
    assert "publishes nothing" in found.note("push_to_hub")


def test_defaults_that_differ_from_ours_are_written_out(tmp_path: Path) -> None:
    config = {
        "model_name_or_path": "org/llama",
        "dataset_name": "org/rows",
        "use_peft": True,
        "dataset_text_field": "body",
    }
    found = imported(tmp_path, config)
    train = found.stage.train
    assert (found.recipe.adapter.rank, found.recipe.adapter.alpha) == (16, 32)
    assert found.recipe.adapter.targets == ["q_proj", "v_proj"]
    assert (found.recipe.model.load_in, found.recipe.model.max_length, found.recipe.seed) == ("bf16", 1024, 42)
    assert (train.epochs, train.learning_rate, train.schedule, train.warmup) == (3, 2e-5, "linear", 0)
    assert (train.batch_size, train.micro_batch_size) == (8, 8)
    assert (found.stage.data[0].format, found.stage.data[0].fields) == ("text", {"text": "body"})
    assert found.stage.held_out.fraction == 0 and not found.stage.held_out.data
    assert "every token of rows of `messages`" in found.decide


@pytest.mark.parametrize(
    ("extra", "name", "kind", "loss"),
    [
        ({"beta": 0.05}, "a.yaml", "dpo", "sigmoid"),
        ({"loss_type": ["ipo"], "beta": 0.3}, "a.yaml", "dpo", "ipo"),
        ({}, "my_dpo.yaml", "dpo", "sigmoid"),
        ({"desirable_weight": 1.5}, "a.yaml", "dpo", "kto"),
        ({"beta": 0.05}, "kto-small.yaml", "dpo", "kto"),
        ({"beta": 0.2}, "orpo.yaml", "dpo", "orpo"),
        ({"simpo_gamma": 0.4, "loss_type": "simpo"}, "a.yaml", "dpo", "simpo"),
        ({"center_rewards_coefficient": 0.01}, "a.yaml", "reward", None),
        ({}, "reward.yaml", "reward", None),
        ({"packing": True}, "a.yaml", "sft", None),
    ],
)
def test_which_command_it_is_for(tmp_path: Path, extra: dict[str, Any], name: str, kind: str, loss: str | None) -> None:
    found = imported(tmp_path, {**without(DPO, "beta"), **extra}, name=name)
    assert (found.stage.kind, getattr(found.stage, "loss", None)) == (kind, loss)
    assert "--kind" not in found.decide


def test_where_nothing_tells_the_command_it_is_said_and_can_be_given(tmp_path: Path) -> None:
    config = without(DPO, "beta", "lora_dropout")
    assert "--kind says another" in imported(tmp_path, config).decide
    told = imported(tmp_path, config, kind="reward")
    assert told.stage.kind == "reward" and "--kind" not in told.decide
    assert told.stage.train.learning_rate == 2e-4


def test_dpo(tmp_path: Path) -> None:
    found = imported(tmp_path, {**DPO, "rpo_alpha": 0.2, "precompute_ref_log_probs": True, "max_prompt_length": 512})
    stage = found.stage
    assert (stage.beta, stage.nll_weight, stage.reference, stage.too_long) == (0.05, 0.2, "ahead", "drop")
    assert found.recipe.adapter.dropout == 0  # disable_dropout is on there
    assert found.fate("lora_dropout") is Fate.CHANGED
    on = imported(tmp_path, {**DPO, "disable_dropout": False})
    assert on.recipe.adapter.dropout == 0.1


def test_no_limit_there_is_a_limit_here(tmp_path: Path) -> None:
    found = imported(tmp_path, {**TRL, "max_length": None})
    assert found.recipe.model.max_length == 4096
    assert found.fate("max_length") is Fate.CHANGED


def test_mixed_losses(tmp_path: Path) -> None:
    two = imported(tmp_path, {**DPO, "loss_type": ["sigmoid", "sft"], "loss_weights": [2.0, 0.5]})
    assert (two.stage.loss, two.stage.nll_weight) == ("sigmoid", 0.25)
    other = imported(tmp_path, {**DPO, "loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]})
    assert other.stage.loss == "sigmoid" and "a recipe has one" in other.decide
    smoothed = imported(tmp_path, {**DPO, "loss_type": "robust", "label_smoothing": 0.1})
    assert (smoothed.stage.loss, smoothed.stage.label_smoothing) == ("robust", 0.1)
    unread = imported(tmp_path, {**DPO, "loss_type": "hinge", "label_smoothing": 0.1})
    assert unread.fate("label_smoothing") is Fate.LEFT_OUT


def test_reward_and_kto(tmp_path: Path) -> None:
    reward = imported(tmp_path, {**DPO, "center_rewards_coefficient": 0.02}, kind="reward")
    assert (reward.stage.kind, reward.stage.centring) == ("reward", 0.02)
    kto = imported(tmp_path, {**DPO, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}, kind="kto")
    assert (kto.stage.loss, kto.stage.train.micro_batch_size, kto.stage.train.batch_size) == ("kto", 2, 2)
    assert kto.stage.data[0].format == "judged"


def test_full_fine_tuning_is_told(tmp_path: Path) -> None:
    found = imported(tmp_path, without(TRL, "use_peft", "load_in_4bit"))
    assert "without use_peft trains all weights" in found.decide
    assert found.stage.train.learning_rate == "auto"
    assert found.fate("lora_r") is Fate.LEFT_OUT


def test_prompts_are_trained_on_where_they_say_so(tmp_path: Path) -> None:
    assert imported(tmp_path, {**TRL, "completion_only_loss": False}).stage.loss_on == "all"
    assert imported(tmp_path, {**without(TRL, "assistant_only_loss"), "completion_only_loss": True}).decide == ""


def test_mixtures(tmp_path: Path) -> None:
    config = without(TRL, "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split")
    rows = [{"path": "org/a", "name": "en", "split": "train", "columns": ["messages"], "fraction": 0.5},
            {"path": "json", "data_files": "mine.jsonl"}]  # fmt: skip
    found = imported(tmp_path, {**config, "datasets": rows, "test_split_size": 0.1})
    assert [(data.hub, data.path, data.weight) for data in found.stage.data] == [
        ("org/a", None, 0.5), (None, "mine.jsonl", 1.0)]  # fmt: skip
    assert found.stage.held_out.fraction == 0.1
    listed = {
        "datasets": [{"id": "org/a", "config": "en", "split": "train_sft", "weight": 0.5}],
        "test_split_size": 100,
    }
    newer = imported(tmp_path, {**config, "dataset_mixture": {**listed, "seed": 0}})
    [data] = newer.stage.data
    assert (data.hub, data.subset, data.split, data.weight) == ("org/a", "en", "train_sft", 0.5)
    assert newer.stage.held_out.max_rows == 100
    mixer = {
        "dataset_mixer": {"org/a": 1.0, "org/b": 0.25},
        "dataset_splits": ["train_prefs", "test_prefs"],
        "beta": 0.1,
    }
    book = imported(tmp_path, {**without(config, "assistant_only_loss"), **mixer})
    assert [(data.hub, data.split, data.weight) for data in book.stage.data] == [
        ("org/a", "train_prefs", 1.0), ("org/b", "train_prefs", 0.25)]  # fmt: skip
    assert [data.split for data in book.stage.held_out.data] == ["test_prefs", "test_prefs"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**TRL, "num_generations": 8}, "GRPO and RLOO are not imported"),
        (without(TRL, "model_name_or_path"), "the file names no model (model_name_or_path)"),
        (without(TRL, "dataset_name"), "names no training rows (dataset_name)"),
        ({**TRL, "learning_rate": "fast"}, "learning_rate: expected a number; found text 'fast'"),
        ({**TRL, "use_peft": "maybe"}, "use_peft: expected true or false"),
    ],
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, config)
    assert words in str(caught.value)


@pytest.mark.slow
def test_their_defaults_are_those_of_the_trl_that_is_installed() -> None:
    """The defaults that the import writes out are TRL's own, read from its arguments."""
    from dataclasses import MISSING, fields

    trl = pytest.importorskip("trl")
    from finetune.migrate import trl as ours

    def defaults(config: Any) -> dict[str, Any]:
        return {field.name: field.default for field in fields(config) if field.default is not MISSING}

    sft, dpo, reward, model = map(defaults, (trl.SFTConfig, trl.DPOConfig, trl.RewardConfig, trl.ModelConfig))
    assert {"sft": sft["learning_rate"], "reward": reward["learning_rate"]} == ours._RATES
    assert dpo["learning_rate"] == 1e-6 and dpo["beta"] == 0.1 and dpo["disable_dropout"] is True
    assert (model["lora_r"], model["lora_alpha"], model["lora_dropout"]) == (16, 32, 0.05)
    for config in (sft, dpo, reward):
        assert (config["max_length"], config["per_device_train_batch_size"], config["num_train_epochs"]) == (
            1024,
            8,
            3.0,
        )
        assert (config["lr_scheduler_type"], config["seed"], config["gradient_checkpointing"]) == ("linear", 42, True)
        assert (config["weight_decay"], config["max_grad_norm"], config["optim"]) == (0.0, 1.0, "adamw_torch_fused")
