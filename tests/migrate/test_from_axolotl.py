from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from migrate_lab import AXOLOTL, imported, without

from finetune.errors import RecipeError
from finetune.migrate.account import Fate

DPO = {
    **without(AXOLOTL, "datasets"),
    "rl": "dpo",
    "rl_beta": 0.2,
    "rpo_alpha": 1.0,
    "datasets": [{"path": "org/pairs", "type": "llama3.intel", "split": "train"}],
}


def test_a_kto_weight_of_nothing_is_told(tmp_path: Path) -> None:
    found = imported(tmp_path, {**DPO, "rl": "kto", "kto_undesirable_weight": 0})
    assert found.stage.kto_weights == (1.0, 1.0)
    assert [told.key for told in found.account.of(Fate.DECIDE)].count("kto_undesirable_weight") == 1


def test_sft_values_are_theirs(tmp_path: Path) -> None:
    found = imported(tmp_path, AXOLOTL)
    recipe, stage, train = found.recipe, found.stage, found.stage.train
    assert stage.kind == "sft"
    assert (recipe.model.base, recipe.model.load_in, recipe.model.max_length) == (
        "meta-llama/Llama-3.1-8B",
        "nf4",
        2048,
    )
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (16, 24, 0.05)
    assert recipe.adapter.targets == ["q_proj", "v_proj"]
    assert recipe.model.template == "llama3"
    [data] = stage.data
    assert (data.hub, data.split, data.format) == ("org/chats", "train", "sharegpt")  # conversations is our name too
    assert data.fields == {}
    assert train.batch_size == 2 * 8 and train.micro_batch_size == 2
    assert (train.epochs, train.learning_rate, train.schedule, train.warmup) == (3, 2e-4, "linear", 0.1)
    assert (train.optimizer, train.weight_decay, train.gradient_checkpointing) == ("paged_adamw_8bit", 0.01, True)
    assert stage.held_out.fraction == 0.1
    assert recipe.track.wandb is not None and recipe.track.wandb.project == "chats"
    assert recipe.seed == 42  # Axolotl's default; ours is 17
    assert "default of Axolotl's seed" in found.text


def test_defaults_that_differ_from_ours_are_written_out(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        without(AXOLOTL, "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "val_set_size", "sequence_len",
                "num_epochs", "lr_scheduler", "warmup_ratio", "micro_batch_size", "gradient_accumulation_steps"),
    )  # fmt: skip
    train = found.stage.train
    assert (found.recipe.adapter.rank, found.recipe.adapter.alpha, found.recipe.adapter.dropout) == (8, 8, 0)  # peft's
    assert found.recipe.adapter.targets == ["q_proj", "v_proj"]  # peft's for a LLaMA
    assert found.recipe.model.max_length == 512
    assert found.stage.held_out.fraction == 0
    assert (train.epochs, train.schedule, train.warmup) == (1, "cosine", 0.03)
    assert (train.batch_size, train.micro_batch_size) == (1, 1)


def test_dpo(tmp_path: Path) -> None:
    found = imported(tmp_path, DPO)
    stage = found.stage
    assert (stage.kind, stage.loss, stage.beta, stage.nll_weight) == ("dpo", "sigmoid", 0.2, 1.0)
    [data] = stage.data
    assert (data.format, data.fields) == ("pairs", {"prompt": "question"})
    assert found.recipe.adapter.dropout == 0  # TRL's trainer switches it off
    assert found.fate("lora_dropout") is Fate.CHANGED


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"rl": "ipo", "rl_beta": 0.3}, {"loss": "ipo", "beta": 0.3}),
        ({"rl": "orpo", "orpo_alpha": 0.15}, {"loss": "orpo", "beta": 0.15}),
        ({"rl": "simpo", "rl_beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.5},
         {"loss": "simpo", "beta": 2.0, "simpo_margin": 0.7, "nll_weight": 0.5}),
        ({"rl": "simpo", "rl_beta": 2.0}, {"loss": "simpo", "simpo_margin": 0.5, "nll_weight": 1.0}),  # CPO's default
        ({"rl": "kto", "kto_desirable_weight": 0.2, "micro_batch_size": 1},
         {"loss": "kto", "beta": 0.1, "kto_weights": (0.2, 1.0)}),
    ],
)  # fmt: skip
def test_preference_losses(tmp_path: Path, extra: dict[str, Any], expected: dict[str, Any]) -> None:
    stage = imported(tmp_path, {**without(DPO, "rl_beta", "rpo_alpha"), **extra}).stage
    assert {key: getattr(stage, key) for key in expected} == expected
    assert stage.data[0].format == ("judged" if stage.loss == "kto" else "pairs")
    if stage.loss == "kto":
        assert (stage.train.micro_batch_size, stage.train.batch_size) == (2, 8)


def test_reward_model(tmp_path: Path) -> None:
    config = {**AXOLOTL, "reward_model": True, "center_rewards_coefficient": 0.01,
              "datasets": [{"path": "org/pairs", "type": "bradley_terry.chat_template"}]}  # fmt: skip
    found = imported(tmp_path, config)
    assert (found.stage.kind, found.stage.centring) == ("reward", 0.01)
    assert (found.stage.data[0].format, found.stage.data[0].fields) == ("pairs", {"prompt": "input"})


def test_full_fine_tuning_is_told_and_its_rate_not_taken(tmp_path: Path) -> None:
    found = imported(tmp_path, without(AXOLOTL, "adapter", "load_in_4bit", "lora_r", "lora_alpha", "lora_dropout"))
    assert found.stage.train.learning_rate == "auto"
    assert (found.recipe.adapter.rank, found.recipe.adapter.targets) == (64, "all-linear")
    assert found.recipe.model.load_in == "bf16"
    assert "trains all weights" in found.decide
    assert found.fate("learning_rate") is Fate.CHANGED


def test_packing_changes_what_a_batch_is(tmp_path: Path) -> None:
    found = imported(tmp_path, {**AXOLOTL, "sample_packing": True, "eval_sample_packing": False})
    assert "counts rows, not packs of sequence_len tokens" in found.decide
    assert found.fate("eval_sample_packing") is Fate.EMPTY
    assert imported(tmp_path, {**AXOLOTL, "sample_packing": False}).decide == ""


def test_type_alpaca_writes_alpacas_text(tmp_path: Path) -> None:
    config = without(AXOLOTL, "chat_template", "datasets")
    rows = [{"path": "org/a", "type": "alpaca"}, {"path": "org/b", "type": "completion", "field": "body"}]
    found = imported(tmp_path, {**config, "datasets": rows})
    assert found.recipe.model.template == "alpaca"
    assert [data.format for data in found.stage.data] == ["alpaca", "text"]
    assert found.stage.data[1].fields == {"text": "body"}
    assert found.decide == ""
    mixed = imported(tmp_path, {**AXOLOTL, "datasets": [rows[0], AXOLOTL["datasets"][0]]})
    assert "two formats" in mixed.decide


def test_a_type_of_their_own_keeps_its_columns(tmp_path: Path) -> None:
    own = {"field_instruction": "q", "field_output": "a", "format": "[INST] {instruction} [/INST]"}
    found = imported(tmp_path, {**AXOLOTL, "datasets": [{"path": "org/a", "type": own}]})
    assert (found.stage.data[0].format, found.stage.data[0].fields) == ("alpaca", {"instruction": "q", "output": "a"})
    assert "the text that it writes round them is not" in found.decide


def test_rows_in_files_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "a"}\n')
    rows = [
        {"path": "data/a.jsonl", "type": "completion", "split": "train"},
        {"path": "json", "data_files": ["data/a.jsonl", "data/gone.jsonl"], "type": "completion"},
    ]
    found = imported(tmp_path, {**AXOLOTL, "datasets": rows}, out="recipes/deep/recipe.yaml")
    assert [data.path for data in found.stage.data] == ["../../data/a.jsonl", "../../data/a.jsonl", "data/gone.jsonl"]
    assert found.stage.data[0].split == "train"  # the default: split belongs to hub data sets
    assert "no file data/gone.jsonl from here" in found.decide
    assert found.wrong == ("stages.sft.data[2].path: no such file or folder: "
                           f"{tmp_path}/recipes/deep/data/gone.jsonl",)  # fmt: skip


def test_held_out_rows(tmp_path: Path) -> None:
    number = imported(tmp_path, {**AXOLOTL, "val_set_size": 200, "eval_steps": 50, "early_stopping_patience": 2})
    assert (number.stage.held_out.fraction, number.stage.held_out.max_rows) == (0.5, 200)
    assert (number.stage.train.eval_every, number.stage.train.early_stop) == (50, 2)
    tests = [{"path": "org/test", "type": "chat_template", "split": "test"}]
    apart = imported(tmp_path, {**AXOLOTL, "val_set_size": 0.0, "test_datasets": tests})
    assert apart.stage.held_out.data[0].hub == "org/test"
    none = imported(tmp_path, {**without(AXOLOTL, "val_set_size"), "eval_steps": 50})
    assert none.stage.train.eval_every is None
    assert "no held-out rows" in none.note("eval_steps")


def test_other_words_of_training(tmp_path: Path) -> None:
    config = {**without(AXOLOTL, "warmup_ratio"), "warmup_steps": 10, "adam_beta2": 0.95, "max_grad_norm": 0.5,
              "max_steps": 77, "save_steps": 30, "save_total_limit": 3, "train_on_inputs": True, "seed": 5,
              "dataset_exact_deduplication": True, "excess_length_strategy": "truncate", "fp16": True,
              "lora_model_dir": "./adapter", "default_system_message": "Be brief.", "revision_of_model": "abc",
              "lora_modules_to_save": ["embed_tokens", "lm_head"], "peft_use_rslora": True}  # fmt: skip
    found = imported(tmp_path, config)
    stage, train = found.stage, found.stage.train
    assert (train.warmup, train.betas, train.max_grad_norm, train.max_steps) == (10, (0.9, 0.95), 0.5, 77)
    assert (train.checkpoint_every, train.keep_checkpoints) == (30, 3)
    assert (stage.loss_on, stage.duplicates, stage.too_long, stage.start_from) == (
        "all",
        "drop",
        "truncate",
        "./adapter",
    )
    assert (found.recipe.model.system, found.recipe.model.revision, found.recipe.seed) == ("Be brief.", "abc", 5)
    assert found.recipe.adapter.modules_to_save == ["embed_tokens", "lm_head"] and found.recipe.adapter.rslora
    assert "no fp16 here" in found.note("fp16")


@pytest.mark.parametrize(
    ("schedule", "ours", "warmup"),
    [("constant", "constant", 0.0), ("constant_with_warmup", "constant", 0.1), ("cosine", "cosine", 0.1),
     ("polynomial", "linear", 0.1), ("one_cycle", "cosine", 0.1)],
)  # fmt: skip
def test_schedules(tmp_path: Path, schedule: str, ours: str, warmup: float) -> None:
    found = imported(tmp_path, {**AXOLOTL, "lr_scheduler": schedule})
    assert (found.stage.train.schedule, found.stage.train.warmup) == (ours, warmup)
    known = schedule in ("constant", "constant_with_warmup", "cosine")
    assert (found.fate("lr_scheduler") is Fate.CARRIED) == known


def test_an_optimizer_that_is_not_here_is_to_be_decided(tmp_path: Path) -> None:
    found = imported(tmp_path, {**AXOLOTL, "optimizer": "muon"})
    assert found.stage.train.optimizer == "adamw"
    assert "there is no muon here" in found.decide


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**AXOLOTL, "rl": "grpo"}, "rl: grpo is not imported"),
        (
            without(AXOLOTL, "base_model") | {"base_model": None, "num_epochs": 1},
            "the file names no model (base_model)",
        ),
        (without(AXOLOTL, "datasets"), "names no training rows (datasets)"),
        (without(AXOLOTL, "learning_rate"), "missing key: learning_rate"),
        ({**AXOLOTL, "lora_r": "many"}, "lora_r: expected a number; found text 'many'"),
        ({**AXOLOTL, "datasets": "org/rows"}, "datasets: expected a list of sections"),
        ({**AXOLOTL, "process_reward_model": True}, "process reward models are not trained here"),
    ],
)
def test_what_cannot_be_imported_is_told_with_its_line(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, config)
    assert words in str(caught.value)
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama3.ultra", {}),
        ("llama3.intel", {"prompt": "question"}),
        ("chatml.argilla_chat", {"messages": "completion"}),
    ],
)
def test_kto_columns(tmp_path: Path, kind: str, fields: dict[str, str]) -> None:
    config = {**DPO, "rl": "kto", "datasets": [{"path": "org/judged", "type": kind}]}
    found = imported(tmp_path, without(config, "chat_template", "rpo_alpha"))
    assert (found.stage.data[0].format, found.stage.data[0].fields) == ("judged", fields)
    assert found.recipe.model.template == ("llama3" if kind.startswith("llama3") else "auto")
    assert ("there is no chatml here" in found.decide) == kind.startswith("chatml")


def test_a_batch_size_of_all_is_taken_as_it_is(tmp_path: Path) -> None:
    found = imported(tmp_path, {**without(AXOLOTL, "gradient_accumulation_steps"), "batch_size": 48})
    assert (found.stage.train.batch_size, found.stage.train.micro_batch_size) == (48, 2)
    assert "of all devices together" in found.text
