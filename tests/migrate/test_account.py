"""What holds for all four tools: nothing is dropped unsaid, no secret is copied, the text reads back as meant."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from migrate_lab import AXOLOTL, LLAMA_FACTORY, TORCHTUNE, TRL, imported, names

from finetune.errors import FinetuneError, InputError, RecipeError
from finetune.migrate.account import Fate, shown
from finetune.migrate.detect import tool_of
from finetune.migrate.places import looks_unlike_llama
from finetune.migrate.render import flow
from finetune.recipe.positions import read_yaml

CONFIGS: dict[str, dict[str, Any]] = {
    "axolotl": AXOLOTL,
    "llama-factory": LLAMA_FACTORY,
    "torchtune": yaml.safe_load(TORCHTUNE),
    "trl": TRL,
}
STRANGE: dict[str, Any] = {
    "an_unheard_of_key": 3,
    "another_one": {"inside_a": [1, {"inside_b": None}], "inside_c": "x" * 200},
    "with_nothing": None,
    "deepspeed": {"zero_optimization": {"stage": 3}},
    "fsdp_config": {"fsdp_offload_params": True, "fsdp_state_dict_type": "FULL_STATE_DICT"},
    "hub_token": "hf_abcdefghijklmnopqrstuvwx",
    "wandb_api_key": "0123456789",
    "env": {"WANDB_API_KEY": "topsecret", "CUDA_VISIBLE_DEVICES": 0},
    "use_liger_kernel": True,
    "tf32": False,
}


@pytest.mark.parametrize("tool", CONFIGS)
def test_every_key_is_in_the_recipe(tmp_path: Path, tool: str) -> None:
    found = imported(tmp_path, {**CONFIGS[tool], **STRANGE})
    for key in names({**CONFIGS[tool], **STRANGE}):
        assert key in found.text, key
    lines = {told.key.partition(".")[0].partition("[")[0] for told in found.account.told.values()}
    assert lines >= set(CONFIGS[tool]) | set(STRANGE)  # and each has a fate of its own
    assert found.fate("an_unheard_of_key") is Fate.DECIDE and found.fate("with_nothing") is Fate.EMPTY
    assert "an_unheard_of_key: 3" in found.text and "not known to this import" in found.text


@pytest.mark.parametrize("tool", CONFIGS)
def test_no_secret_is_copied(tmp_path: Path, tool: str) -> None:
    found = imported(tmp_path, {**CONFIGS[tool], **STRANGE})
    for secret in ("hf_abcdefghijklmnopqrstuvwx", "0123456789", "topsecret"):
        assert secret not in found.text
    assert "hub_token: (a secret, not copied)" in found.text


@pytest.mark.parametrize("tool", CONFIGS)
def test_which_tool_it_is(tool: str) -> None:
    assert tool_of(CONFIGS[tool], "x.yaml")[0] == tool


@pytest.mark.parametrize("tool", CONFIGS)
def test_whatever_the_values_are_there_is_a_recipe_or_a_message(tmp_path: Path, tool: str) -> None:
    """Keys taken away and values replaced at random: a recipe that loads with every key in it, or an error of ours."""
    dice = random.Random(5)
    odd = [
        None,
        "",
        "x",
        True,
        False,
        0,
        -1,
        3,
        0.5,
        1e-4,
        "1e-4",
        "yes",
        [],
        {},
        ["a"],
        [1],
        {"a": 1},
        [{"a": 1}],
        [{}],
    ]
    outcomes = {"recipe": 0, "message": 0}
    for _ in range(60):
        config = dict(CONFIGS[tool])
        for key in dice.sample(list(config), dice.randint(1, 3)):
            if dice.random() < 0.4:
                del config[key]
            elif isinstance(config[key], dict) and dice.random() < 0.6:
                inner = dice.choice(list(config[key]))
                config[key] = {**config[key], inner: dice.choice(odd)}
            else:
                config[key] = dice.choice(odd)
        try:
            found = imported(tmp_path, config, tool=tool)
        except FinetuneError as error:
            assert str(error).startswith(f"{tmp_path}/theirs.yaml")
            outcomes["message"] += 1
        else:
            assert all(key in found.text for key in names(config))
            outcomes["recipe"] += 1
    assert min(outcomes.values()) >= 5, outcomes


def test_of_no_tool(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be told from its keys \(learning, data\).*--from"):
        imported(tmp_path, {"learning": 1, "data": 2})
    with pytest.raises(InputError, match="is a recipe of finetune already"):
        imported(tmp_path, {"name": "a", "model": {"base": "x"}, "stages": {}})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base_model: a\n  micro: 1\n", "theirs.yaml:2: not valid YAML: "),
        ("base_model: [a\nx: 1\n", "theirs.yaml:2: not valid YAML: "),
        ("base_model: a\nbase_model: b\n", "theirs.yaml:2: base_model: duplicate key"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "theirs.yaml:3: c: merge keys (<<) are not read here"),
        ("", "the file holds no keys"),
        ("- a\n- b\n", "the file holds no keys"),
    ],
)
def test_bad_yaml_is_one_message_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, text)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_all_that_is_wrong_is_told_at_once_with_lines(tmp_path: Path) -> None:
    text = (
        "base_model: a/b\nlora_r: big\nadapter: lora\nlearning_rate: 1e-4\nnum_epochs: [1]\ndatasets:\n  - {type: x}\n"
    )
    with pytest.raises(RecipeError) as caught:
        imported(tmp_path, text)
    assert [line.partition(": ")[0].rpartition(":")[2] for line in str(caught.value).splitlines()] == ["2", "5", "7"]


def test_values_that_no_recipe_takes_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"theirs.yaml:4: lora_r: expected a whole number .* found 0 \(adapter.rank of"
    ):
        imported(tmp_path, {**AXOLOTL, "lora_r": 0})


def test_text_numbers_are_numbers_as_the_tools_read_them(tmp_path: Path) -> None:
    found = imported(tmp_path, {**AXOLOTL, "learning_rate": "2e-5", "gradient_checkpointing": "yes", "num_epochs": "2"})
    assert (found.stage.train.learning_rate, found.stage.train.epochs) == (2e-5, 2)
    assert found.stage.train.gradient_checkpointing is True


def test_a_base_that_is_no_llama_is_told(tmp_path: Path) -> None:
    assert "does not look like a LLaMA" in imported(tmp_path, {**AXOLOTL, "base_model": "Qwen/Qwen2.5-7B"}).decide
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text('{"model_type": "qwen2"}')
    local = imported(tmp_path, {**AXOLOTL, "base_model": "qwen"}, out="recipes/recipe.yaml")
    assert local.recipe.model.base == "../qwen"
    assert "is a model of type 'qwen2'; only LLaMA text models" in local.decide
    assert any("qwen2" in line for line in local.wrong)


def test_layers_that_a_llama_does_not_have_are_told(tmp_path: Path) -> None:
    found = imported(tmp_path, {**AXOLOTL, "lora_target_modules": ["q_proj", "query_key_value"]})
    assert found.recipe.adapter.targets == ["q_proj"]
    assert "a LLaMA has no linear layer query_key_value" in found.decide
    pattern = imported(tmp_path, {**AXOLOTL, "lora_target_modules": r".*\.(q|k)_proj"})
    assert pattern.recipe.adapter.targets == r".*\.(q|k)_proj" and pattern.decide == ""


def test_a_base_that_is_quantised_already_is_told(tmp_path: Path) -> None:
    found = imported(tmp_path, {**AXOLOTL, "base_model": "unsloth/llama-3-8b-bnb-4bit"})
    assert "holds quantised weights by its name" in found.decide
    assert imported(tmp_path, {**AXOLOTL, "base_model": "org/llama-3-8b"}).decide == ""


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("meta-llama/Llama-2-7b-hf", False),
        ("NousResearch/Llama-3.2-1B", False),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", False),
        ("lmsys/vicuna-7b-v1.5", False),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", False),
        ("codellama/CodeLlama-7b-hf", False),
        ("mistralai/Mistral-7B-v0.1", True),
        ("Qwen/Qwen3-4B", True),
        ("google/gemma-2-2b", True),
        ("microsoft/phi-4", True),
        ("meta-llama/Llama-4-Scout-17B-16E", True),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", True),
    ],
)
def test_names_of_other_designs(name: str, other: bool) -> None:
    assert looks_unlike_llama(name) is other


@pytest.mark.parametrize(
    "value",
    ["plain", "a: b", "1e-4", "- x", "# no", "", "two\nlines", "a, b", "'quoted'", "{x}", "ünï", "null", 3, 2.5, 1e-5,
     5e-06, 3.0, -0.0, True, None, ["a", "b, c"], {"prompt": "question: which"}, 1e22],
)  # fmt: skip
def test_values_read_back_as_they_were(value: Any) -> None:
    assert read_yaml(f"key: {flow(value)} # a comment").value == {"key": value}


def test_what_is_shown_of_values() -> None:
    assert shown({"a": [1, {"b": None}], "c": True}) == "{a: [1, {b: null}], c: true}"
    assert shown("x" * 90) == "x" * 67 + "…"
    assert shown(list(range(20))) == "[0, 1, 2, 3, 4, 5, 6, 7, … 12 more]"
    assert shown("s", "hf_hub_token") == shown("hf_" + "a" * 30) == "(a secret, not copied)"
    assert shown("<|eot_id|>", "eos_token") == "<|eot_id|>"
    assert shown(True, "hf_use_auth_token") == "true"


def test_no_line_is_longer_than_what_a_screen_shows(tmp_path: Path) -> None:
    for tool, config in CONFIGS.items():
        lines = imported(tmp_path, {**config, **STRANGE}, tool=tool).text.splitlines()
        assert [line for line in lines if len(line) > 120] == []
