"""`finetune import` as a command: what it prints, what it writes, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.cli.main import main
from finetune.recipe.load import load_recipe

THEIRS = """\
base_model: org/Llama-small
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
datasets:
  - path: rows.jsonl
    type: alpaca
sequence_len: 512
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 1
learning_rate: 1e-4
flash_attention: true
wandb_project:
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yaml").write_text(THEIRS)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')


def test_what_it_prints_and_writes(finetune: Any, tmp_path: Path) -> None:
    done = finetune("import", "theirs.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "read theirs.yaml: a configuration of Axolotl (base_model, micro_batch_size, sequence_len, num_epochs)",
        "wrote recipe.yaml: one stage of kind sft",
        "  carried over         11 keys; empty or off: 1",
        "  changed              1: gradient_accumulation_steps",
        "  left out             1: flash_attention",
        "  to be decided by you 1",
        "    - sample_packing: rows are laid end to end here too, but train.batch_size counts rows, not packs of "
        "sequence_len tokens: multiply it by the rows that fit into one (`finetune inspect` shows the lengths)",
        "The recipe says why for each key.",
        "next: finetune check recipe.yaml",
    ]
    assert finetune("check", "recipe.yaml").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl", "theirs.yaml"]


def test_it_needs_no_torch(root: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom finetune.cli.main import main\ncode = main(['import', 'theirs.yaml'])\n"
        "print(code, sorted({'torch', 'transformers', 'trl', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_recipe_is_not_overwritten_unless_forced(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    assert main(["import", "theirs.yaml"]) == 2
    assert "recipe.yaml exists already; give another name with -o, or --force" in capfd.readouterr().err
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert main(["import", "theirs.yaml", "--force"]) == 0
    assert load_recipe(tmp_path / "recipe.yaml").recipe.name == "theirs"
    assert main(["import", "theirs.yaml", "-o", "theirs.yaml", "--force"]) == 2
    assert "is the file to be read" in capfd.readouterr().err
    assert (tmp_path / "theirs.yaml").read_text() == THEIRS


def test_into_another_folder(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    assert main(["import", "theirs.yaml", "-o", "recipes"]) == 0
    assert load_recipe("recipes/recipe.yaml").recipe.stages["sft"].data[0].path == "../rows.jsonl"
    assert main(["import", "theirs.yaml", "-o", "new/deep/a.yaml"]) == 0
    assert load_recipe("new/deep/a.yaml").recipe.name == "theirs"


@pytest.mark.parametrize(
    ("text", "args", "words"),
    [
        ("base_model: a\n  x: 1\n", [], "theirs.yaml:2: not valid YAML"),
        ("learning: 1\n", [], "cannot be told from its keys (learning)"),
        (
            THEIRS.replace("lora_r: 8", "lora_r: eight"),
            [],
            "theirs.yaml:3: lora_r: expected a number; found text 'eight'",
        ),
        (THEIRS, ["--kind", "dpo"], "--kind is for TRL's files"),
        (THEIRS, ["--from", "axolotl", "--kind", "dpo"], "--kind is for TRL's files"),
        (THEIRS, ["--from", "unsloth"], "Invalid value for '--from'"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, args: list[str], words: str
) -> None:
    (tmp_path / "theirs.yaml").write_text(text)
    assert main(["import", "theirs.yaml", *args]) == 2
    assert words in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "theirs.yaml"]


def test_a_file_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "gone.yaml"]) == 2
    assert "gone.yaml: no such file" in capfd.readouterr().err
    assert main(["import", str(tmp_path)]) == 2
    assert "this is a folder; give the configuration file" in capfd.readouterr().err


def test_from_says_whose_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(
        "model_name_or_path: org/llama\nuse_peft: true\ndataset_name: org/rows\nbeta: 0.3\n"
    )
    assert main(["import", "a.yaml", "-o", "one.yaml"]) == 0
    assert "a configuration of TRL (model_name_or_path, dataset_name, use_peft, beta)" in capfd.readouterr().out
    assert main(["import", "a.yaml", "-o", "two.yaml", "--from", "trl", "--kind", "kto"]) == 0
    printed = capfd.readouterr().out
    assert "a configuration of TRL (as told with --from)" in printed
    assert load_recipe("two.yaml").recipe.stages["dpo"].loss == "kto"
