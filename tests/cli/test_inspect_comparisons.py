"""`finetune inspect` on stages that learn from comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny import tiny_llama3_tokenizer

from finetune.cli.inspect import inspect
from finetune.errors import DataError

RECIPE = """
name: t
model: {base: base, max_length: 60}
stages:
  reward: {kind: reward, data: [{path: pairs.jsonl}], held_out: {fraction: 0.0}}
  dpo: {kind: dpo, loss: kto, data: [{path: kto.jsonl}], held_out: {fraction: 0.0}}
  wrong: {kind: sft, data: [{path: pairs.jsonl}]}
"""
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 488,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
PAIRS = [
    {"prompt": "Capital of France?", "chosen": "Paris", "rejected": "Rome", "rating": "better", "margin": 0.5},
    {"prompt": "Capital of Italy?", "chosen": "Rome", "rejected": " Rome"},
    {"prompt": "Capital of Italy?", "chosen": "Rome", "rejected": "Paris", "edited": "It is Rome"},
]
KTO = [{"prompt": "Capital of Italy?", "completion": "Paris", "label": False}]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tiny_llama3_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in KTO))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, *args: str) -> str:
    result = CliRunner().invoke(inspect, [str(recipe), "--runs", str(recipe.parent / "runs"), *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_the_prompt_once_and_every_answer_with_what_is_scored(recipe: Path) -> None:
    shown = run(recipe)
    assert "pairs.jsonl: 3 rows, format pairs (detected)" in shown
    assert "left out: 1 rows, the answers differ at most by white space (pairs.jsonl:2: " in shown
    assert "training answers by length in tokens:" in shown
    assert "row 0  pairs.jsonl:1: 2 answers, margin 0.5, rating better" in shown
    assert shown.count("Capital of France?") == 1 and "row 1" not in shown
    assert "⟦Paris<|eot_id|>⟧\n-- rejected: " in shown and "⟦Rome<|eot_id|>⟧" in shown
    assert "row 2  pairs.jsonl:3: 3 answers\n" in shown and "-- 1 of 3: " in shown and "⟦It is Rome<|eot_id|>⟧" in shown
    assert "row 1  pairs.jsonl:2: 2 answers  LEFT OUT: the answers differ" in run(recipe, "--all")


def test_json_has_one_comparison_a_row(recipe: Path) -> None:
    rows = [json.loads(line) for line in run(recipe, "--json", "--all").splitlines()]
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert [len(row["answers"]) for row in rows] == [2, 2, 3]
    assert [(row["margin"], row["rating"], row["desirable"]) for row in rows] == [(0.5, "better", None)] + [
        (None,) * 3
    ] * 2
    assert rows[0]["dropped"] is None and rows[1]["dropped"] == "the answers differ at most by white space"
    for answer in rows[0]["answers"]:
        assert len(answer["input_ids"]) == len(answer["trained"]) and set(answer["trained"]) == {0, 1}


def test_judged_answers(recipe: Path) -> None:
    assert "-- undesirable: " in run(recipe, "--stage", "dpo")
    (row,) = [json.loads(line) for line in run(recipe, "--stage", "dpo", "--json").splitlines()]
    assert row["desirable"] is False and len(row["answers"]) == 1


def test_pairs_in_an_sft_stage(recipe: Path) -> None:
    with pytest.raises(DataError, match="look like pairs for preference training, which reward and dpo stages read"):
        run(recipe, "--stage", "wrong")
