from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from migrate_lab import TORCHTUNE, imported

from finetune.errors import RecipeError
from finetune.migrate.account import Fate

DPO = TORCHTUNE.replace("torchtune.modules.loss.CEWithChunkedOutputLoss", "torchtune.rlhf.loss.DPOLoss\n  beta: 0.25")


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text("[]")


def changed(text: str, section: str, **values: object) -> str:
    """A configuration with a section's values changed; None removes one. section "" = the top."""
    config = yaml.safe_load(text)
    place = config[section] if section else config
    place.update(values)
    for key in [key for key, value in values.items() if value is None]:
        del place[key]
    return yaml.safe_dump(config, sort_keys=False)


def dataset(name: str, **values: object) -> str:
    config = yaml.safe_load(TORCHTUNE)
    config["dataset"] = {"_component_": f"torchtune.datasets.{name}", **values}
    return yaml.safe_dump(config, sort_keys=False)


def test_sft_values_are_theirs(tmp_path: Path) -> None:
    found = imported(tmp_path, TORCHTUNE)
    recipe, stage, train = found.recipe, found.stage, found.stage.train
    assert (recipe.model.base, recipe.model.load_in, recipe.model.max_length) == ("base", "bf16", 2048)
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.dropout) == (8, 16, 0)
    assert recipe.adapter.targets == ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (recipe.model.device, recipe.seed) == ("cpu", 7)
    [data] = stage.data
    assert (data.path, data.format) == ("./rows.json", "prompt_completion")
    assert data.fields == {"prompt": "question", "completion": "answer"}
    assert (train.batch_size, train.micro_batch_size) == (2 * 16, 2)
    assert (train.epochs, train.max_steps) == (3, 75)  # 25 in each epoch
    assert (train.learning_rate, train.schedule, train.warmup) == (3e-4, "cosine", 100)
    assert (train.optimizer, train.weight_decay) == ("adamw", 0.01)  # torch's default
    assert train.max_grad_norm is None  # torchtune clips only where it is told to
    assert (stage.loss_on, stage.too_long, stage.held_out.fraction) == ("answers", "truncate", 0)


def test_interpolation_is_followed(tmp_path: Path) -> None:
    text = changed(TORCHTUNE, "checkpointer", checkpoint_dir="${base_folder}/llama")
    found = imported(tmp_path, "base_folder: /models\n" + text)
    assert found.recipe.model.base == "/models/llama"
    assert "/models/llama" in found.decide  # no such folder here
    circle = imported(tmp_path, changed(TORCHTUNE, "checkpointer", checkpoint_dir="${checkpointer.checkpoint_dir}"))
    assert "${checkpointer.checkpoint_dir}" in circle.recipe.model.base


def test_qlora_is_four_bits(tmp_path: Path) -> None:
    text = TORCHTUNE.replace("lora_llama3_1_8b", "qlora_llama3_1_8b")
    assert imported(tmp_path, text).recipe.model.load_in == "nf4"
    assert imported(tmp_path, changed(TORCHTUNE, "model", quantize_base=True)).recipe.model.load_in == "nf4"
    assert imported(tmp_path, TORCHTUNE.replace("dtype: bf16", "dtype: fp32")).recipe.model.load_in == "fp32"


def test_all_linear_layers_are_all_linear(tmp_path: Path) -> None:
    every = ["q_proj", "k_proj", "v_proj", "output_proj"]
    assert (
        imported(tmp_path, changed(TORCHTUNE, "model", lora_attn_modules=every)).recipe.adapter.targets == "all-linear"
    )
    head = imported(tmp_path, changed(TORCHTUNE, "model", apply_lora_to_output=True))
    assert "modules_to_save: [lm_head]" in head.decide
    assert "lm_head" not in head.recipe.adapter.targets


@pytest.mark.parametrize(
    ("loss", "ours", "beta"),
    [("DPOLoss\n  beta: 0.25", "sigmoid", 0.25), ("DPOLoss", "sigmoid", 0.1), ("RSOLoss\n  gamma: 0.3", "hinge", 0.3)],
)
def test_dpo(tmp_path: Path, loss: str, ours: str, beta: float) -> None:
    text = TORCHTUNE.replace("torchtune.modules.loss.CEWithChunkedOutputLoss", f"torchtune.rlhf.loss.{loss}")
    config = yaml.safe_load(text)
    config["dataset"] = {"_component_": "torchtune.datasets.stack_exchange_paired_dataset"}
    stage = imported(tmp_path, config).stage
    assert (stage.kind, stage.loss, stage.beta) == ("dpo", ours, beta)
    [data] = stage.data
    assert (data.hub, data.format) == ("lvwerra/stack-exchange-paired", "pairs")
    assert data.fields == {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}


def test_datasets(tmp_path: Path) -> None:
    alpaca = imported(tmp_path, dataset("alpaca_cleaned_dataset"))
    assert (alpaca.stage.data[0].hub, alpaca.stage.data[0].format) == ("yahma/alpaca-cleaned", "alpaca")
    assert alpaca.stage.loss_on == "all"  # its train_on_input is true where it is not given
    assert imported(tmp_path, dataset("alpaca_dataset", train_on_input=False)).stage.loss_on == "answers"
    chat = imported(
        tmp_path,
        dataset("chat_dataset", source="org/chats", conversation_column="talk", conversation_style="openai",
                new_system_prompt="Be kind."),
    )  # fmt: skip
    assert (chat.stage.data[0].format, chat.stage.data[0].fields) == ("messages", {"messages": "talk"})
    assert chat.recipe.model.system == "Be kind."
    text = imported(tmp_path, dataset("text_completion_dataset", source="org/books", column="body", split="train[:5%]"))
    assert (text.stage.data[0].format, text.stage.data[0].fields) == ("text", {"text": "body"})
    assert text.stage.data[0].split == "train[:5%]"
    unknown = imported(tmp_path, dataset("my_dataset", source="org/mine"))
    assert unknown.stage.data[0].format == "auto" and "there is no my_dataset here" in unknown.decide
    packed = imported(tmp_path, dataset("slimorca_dataset", packed=True))
    assert "hold up to max_seq_len tokens each" in packed.decide


def test_several_datasets_and_rows_to_measure_on(tmp_path: Path) -> None:
    config = yaml.safe_load(TORCHTUNE)
    config["dataset"] = [{"_component_": "torchtune.datasets.alpaca_dataset"},
                         {"_component_": "torchtune.datasets.slimorca_dataset"}]  # fmt: skip
    config["dataset_val"] = {"_component_": "torchtune.datasets.alpaca_dataset", "split": "train[95%:]"}
    config["run_val_every_n_steps"] = 20
    found = imported(tmp_path, config)
    assert [data.hub for data in found.stage.data] == ["tatsu-lab/alpaca", "Open-Orca/SlimOrca-Dedup"]
    assert found.stage.held_out.data[0].split == "train[95%:]"
    assert found.stage.train.eval_every == 20
    assert "some data sets train on prompts and some do not" in found.decide


def test_full_fine_tuning_is_told(tmp_path: Path) -> None:
    config = yaml.safe_load(TORCHTUNE)
    config["model"] = {"_component_": "torchtune.models.llama3_1.llama3_1_8b"}
    found = imported(tmp_path, config)
    assert "trains all weights" in found.decide
    assert found.stage.train.learning_rate == "auto"


def test_another_model_is_told(tmp_path: Path) -> None:
    found = imported(
        tmp_path, TORCHTUNE.replace("models.llama3_1.lora_llama3_1_8b", "models.qwen2_5.lora_qwen2_5_7b_base")
    )
    assert "torchtune.models.qwen2_5 is no LLaMA text model" in found.decide
    vision = imported(tmp_path, TORCHTUNE.replace("models.llama3_1.lora", "models.llama3_2_vision.lora"))
    assert "llama3_2_vision is no LLaMA text model" in vision.decide


def test_optimizers_and_schedules(tmp_path: Path) -> None:
    text = TORCHTUNE.replace("torch.optim.AdamW", "bitsandbytes.optim.PagedAdamW8bit")
    assert imported(tmp_path, text).stage.train.optimizer == "paged_adamw_8bit"
    other = imported(tmp_path, TORCHTUNE.replace("torch.optim.AdamW", "torch.optim.SGD"))
    assert other.stage.train.optimizer == "adamw" and "there is no SGD here" in other.decide
    none = imported(tmp_path, changed(TORCHTUNE, "", lr_scheduler=None))
    assert (none.stage.train.schedule, none.stage.train.warmup) == ("constant", 0)
    clipped = imported(tmp_path, TORCHTUNE + "clip_grad_norm: 2.0\n")
    assert clipped.stage.train.max_grad_norm == 2


def test_a_drawn_seed_and_no_limit_are_told(tmp_path: Path) -> None:
    found = imported(
        tmp_path, TORCHTUNE.replace("seed: 7", "seed: null").replace("max_seq_len: 2048", "max_seq_len: null")
    )
    assert (found.recipe.seed, found.recipe.model.max_length) == (17, 4096)
    assert found.fate("seed") is Fate.CHANGED and found.fate("tokenizer.max_seq_len") is Fate.CHANGED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TORCHTUNE + "teacher_model: {_component_: torchtune.models.llama3_1.llama3_1_8b}\n", "knowledge distillation"),
        (TORCHTUNE + "grpo_samples: 4\n", "GRPO is not imported"),
        (TORCHTUNE.replace("epochs: 3\n", ""), "missing key: epochs"),
        (TORCHTUNE.replace("  lr: 3e-4\n", ""), "optimizer.lr: missing key: lr"),
        (TORCHTUNE.replace("  source: json\n", ""), "dataset.source: instruct_dataset names no source"),
    ],
)
def test_what_cannot_be_imported_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, text)
    assert words in str(caught.value)
