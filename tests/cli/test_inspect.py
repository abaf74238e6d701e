"""`finetune inspect`: what is shown is what is trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny import tiny_llama3_tokenizer

from finetune.cli.inspect import inspect
from finetune.cli.painting import painted
from finetune.data.look import SHOWN_TOKENS, Part
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError

RECIPE = """
name: t
model: {base: base, max_length: 60}
stages:
  sft: {kind: sft, data: [{path: d.jsonl}], held_out: {fraction: 0.0}}
  again: {kind: sft, data: [{path: e.jsonl}], held_out: {fraction: 0.0}}
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


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tiny_llama3_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(CONFIG))
    rows = [
        {"instruction": "Capital of France?", "output": "Paris <|eot_id|>\x1b[31m"},
        {"instruction": "Capital of Italy?", "output": "Rome " * 60},
        {"instruction": "Capital of Italy?", "output": "Rome"},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "e.jsonl").write_text('{"text": "Once upon a time"}\n')
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def run(recipe: Path, *args: str) -> Result:
    result = CliRunner().invoke(inspect, [str(recipe), "--runs", str(recipe.parent / "runs"), *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def json_rows(recipe: Path, *args: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in run(recipe, "--json", *args).stdout.splitlines()]


def test_piped_output_marks_what_is_trained_and_says_what_is_left_out(recipe: Path) -> None:
    shown = run(recipe).output
    assert "d.jsonl: 3 rows, format alpaca (detected)" in shown
    assert "left out: 1 rows, longer than max_length (d.jsonl:2: " in shown
    assert "training rows by length in tokens:" in shown
    assert "row 0  d.jsonl:1: " in shown and "row 2  d.jsonl:3: " in shown and "row 1" not in shown
    assert "row 1  d.jsonl:2: " in run(recipe, "--all").output
    assert "LEFT OUT: longer than max_length" in run(recipe, "--set", "model.max_length=8").output
    # The stop token is trained; what the user wrote like one is text; control characters do not reach the terminal.
    assert "<|end_header_id|>\n\n⟦Paris <|eot_id|>\\x1b[31m<|eot_id|>⟧" in shown
    assert "\x1b" not in shown
    assert not (recipe.parent / "runs").exists()


def test_json_has_one_object_a_row(recipe: Path) -> None:
    rows = json_rows(recipe, "--all")
    assert [list(row) for row in rows] == [["row", "input_ids", "trained", "dropped"]] * 3
    assert [(row["row"], row["dropped"]) for row in rows] == [(0, None), (1, "longer than max_length"), (2, None)]
    tokenizer = Tokenizer.load(recipe.parent / "base")
    for row in rows:
        ids, trained = row["input_ids"], row["trained"]
        assert isinstance(ids, list) and isinstance(trained, list)
        assert len(ids) == len(trained) and set(trained) == {0, 1}
        assert ids[0] == tokenizer.special_tokens["<|begin_of_text|>"]
        assert (ids[-1], trained[-1]) == (tokenizer.special_tokens["<|eot_id|>"], 1)
    assert len(json_rows(recipe)) == 3 and len(json_rows(recipe, "-n", "1")) == 1


def test_stage_set_and_wrong_names(recipe: Path) -> None:
    (row,) = json_rows(recipe, "--stage", "again")
    assert isinstance(row["trained"], list) and set(row["trained"]) == {1}
    assert json_rows(recipe, "--all", "--set", "model.max_length=1000")[1]["dropped"] is None
    with pytest.raises(InputError, match="no stage 'sfft' with data; it has sft, again"):
        run(recipe, "--stage", "sfft")


def test_prompts_of_a_stage_that_samples(recipe: Path) -> None:
    stage = "{kind: reject, prompts: [{path: d.jsonl}], checker: {kind: finished}, max_new_tokens: 8}"
    recipe.write_text(RECIPE + f"  best: {stage}\n")
    shown = run(recipe, "--stage", "best").output
    assert "row 0  d.jsonl:1: " in shown and "Capital of France?" in shown and "Paris" not in shown
    assert "⟦" not in shown.replace("⟦trained⟧", "")
    rows = json_rows(recipe, "--stage", "best")
    assert len(rows) == 2 and all(set(row["trained"]) == {0} for row in rows)  # equal prompts count once


def test_the_cache_of_training_is_used_where_there_are_runs(recipe: Path) -> None:
    (recipe.parent / "runs").mkdir()
    first = run(recipe).output
    assert len(list((recipe.parent / "runs" / ".cache").iterdir())) == 1
    assert "found in the cache" not in first and "found in the cache" in run(recipe).output


def test_it_needs_no_torch(recipe: Path, root: Path) -> None:
    code = (
        "import sys; from finetune.cli.main import main\n"
        f"status = main(['inspect', {str(recipe)!r}])\n"
        "assert status == 0, status\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, stdout=subprocess.DEVNULL)


def styled(text: object) -> list[tuple[str, str]]:
    from rich.text import Text

    assert isinstance(text, Text)
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_colours(recipe: Path) -> None:
    tokenizer = Tokenizer.load(recipe.parent / "base")
    words = tokenizer.encode_text("The capital of France")
    stop = tokenizer.special_tokens["<|eot_id|>"]
    trained: Sequence[int] = [0, *[1] * (len(words) - 1), 1]
    part = Part("", [*words, stop], trained, len(trained))
    assert styled(painted(part, tokenizer, colour=True)) == [
        (tokenizer.decode(words[:1]), "dim"),
        (tokenizer.decode(words[1:]), "green"),
        ("<|eot_id|>", "bold green"),
    ]


def test_the_middle_of_a_long_row_is_left_out(recipe: Path) -> None:
    tokenizer = Tokenizer.load(recipe.parent / "base")
    (word,) = tokenizer.encode_text("s")
    for trained, ends in ((1, ("⟦s", "s⟧")), (0, ("s", "s"))):
        count = SHOWN_TOKENS + 50
        plain = painted(Part("", [word] * count, [trained] * count, count), tokenizer, colour=False).plain
        assert " … 50 tokens … " in plain and plain.count("s") == SHOWN_TOKENS + len("tokens") - 5
        assert plain.startswith(ends[0]) and plain.endswith(ends[1])
        assert plain.count("⟦") == plain.count("⟧") == 2 * trained
