from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from finetune.cli.main import main
from finetune.recipe.load import check_recipe, load_recipe
from finetune.recipe.schema import Recipe


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def checked(path: str) -> Recipe:
    loaded = load_recipe(path)
    check_recipe(loaded)
    return loaded.recipe


def test_what_init_writes_passes_check(finetune: Any, tmp_path: Path) -> None:
    done = finetune("init")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("next: finetune check recipe.yaml\n")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "data/example.jsonl",
        "recipe.yaml",
    ]
    assert finetune("check", "recipe.yaml").returncode == 0


def test_the_example_rows_are_conversations(tmp_path: Path) -> None:
    assert main(["init"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "data/example.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 8
    for row in rows:
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert all(turn["content"].strip() for turn in row["messages"])


def test_no_placeholder_is_left_and_every_key_says_what_the_default_says(tmp_path: Path) -> None:
    assert main(["init", "chat.yaml"]) == 0
    text = (tmp_path / "chat.yaml").read_text()
    assert not re.search(r"__\w+__", text)
    assert "finetune check chat.yaml" in text
    recipe = checked("chat.yaml")
    assert recipe.name == "chat"
    assert recipe.model.base == "meta-llama/Llama-3.2-1B-Instruct"
    assert recipe.stages["sft"].train.learning_rate == "auto"


def test_the_commented_line_is_right_too(tmp_path: Path) -> None:
    assert main(["init"]) == 0
    text = (tmp_path / "recipe.yaml").read_text()
    assert "\n# track:" in text
    (tmp_path / "recipe.yaml").write_text(text.replace("\n# track:", "\ntrack:"))
    wandb = checked("recipe.yaml").track.wandb
    assert wandb is not None and wandb.project == "my-project"


def test_the_schema_that_editors_are_pointed_to_is_there(tmp_path: Path) -> None:
    assert main(["init"]) == 0
    first = (tmp_path / "recipe.yaml").read_text().splitlines()[0]
    reference = first.removeprefix("# yaml-language-server: $schema=")
    assert reference != first
    parsed = urlparse(reference)
    schema = Path(unquote(parsed.path)) if parsed.scheme == "file" else tmp_path / reference
    assert json.loads(schema.read_text(encoding="utf-8"))["title"] == "finetune recipe"


def test_inside_the_project_the_schema_is_relative(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that is committed beside the package, or beside a virtual environment with it, names no machine."""
    from finetune.cli.init import schema_reference

    monkeypatch.chdir(root)
    assert schema_reference(Path("recipes")) == "../finetune/recipe/schema.json"


def test_nothing_is_overwritten(finetune: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    done = finetune("init")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: recipe.yaml exists already; give another name, or remove it first\n"
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "example.jsonl").write_text('{"text": "mine"}\n')
    assert main(["init", "other.yaml"]) == 0
    assert (tmp_path / "data" / "example.jsonl").read_text() == '{"text": "mine"}\n'


def test_a_folder_gets_a_recipe_named_after_it(tmp_path: Path) -> None:
    (tmp_path / "my chat!").mkdir()
    assert main(["init", "my chat!"]) == 0
    assert checked("my chat!/recipe.yaml").name == "my-chat"
    assert main(["init", "123.yaml"]) == 0
    assert checked("123.yaml").name == "123"
    assert main(["init", "new/folder/a.yaml"]) == 0
    assert checked("new/folder/a.yaml").name == "a"


@pytest.mark.parametrize("folder", ["base", "my base #1", "it's: a base"])
def test_given_base_and_data_are_relative_to_the_recipe(tmp_path: Path, shared: Path, folder: str) -> None:
    (tmp_path / folder).symlink_to(shared / "models" / "stories260K")
    (tmp_path / "rows, mine.jsonl").write_text('{"text": "a"}\n')
    assert main(["init", "recipes/a.yaml", "--base", folder, "--data", "rows, mine.jsonl"]) == 0
    recipe = checked("recipes/a.yaml")
    assert recipe.model.base == f"../{folder}"
    assert recipe.stages["sft"].data[0].path == "../rows, mine.jsonl"
    assert not (tmp_path / "recipes" / "data").exists()


def test_hub_names_are_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--base", "org/model", "--data", "org/rows"]) == 0
    said = f"base org/model: taken for a hub id, since there is no folder {tmp_path / 'org/model'}\n"
    assert said in capfd.readouterr().out
    recipe = checked("recipe.yaml")
    assert recipe.model.base == "org/model"
    assert recipe.stages["sft"].data[0].hub == "org/rows"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--base", "./gone"], "--base ./gone: no such folder"),
        (["--base", "gone"], "'gone' is neither a folder nor a hub id"),
        (["--base", "empty"], "has no config.json"),
        (["--data", "gone.jsonl"], "--data gone.jsonl: no such file or folder"),
        (["--data", "data/gone.jsonl"], "--data data/gone.jsonl: no such file or folder"),
        (["--data", "empty"], "holds no .jsonl"),
    ],
)
def test_what_is_given_and_wrong_is_told_and_nothing_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], args: list[str], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["init", "new/recipe.yaml", *args]) == 2
    assert words in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
