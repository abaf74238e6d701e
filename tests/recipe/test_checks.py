"""What is told about the files that a recipe names; every case ends in one RecipeError with the key's line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.checks import check_files
from finetune.recipe.load import check_recipe, load_recipe

Write = Callable[[str], Path]


def told(path: Path) -> list[str]:
    loaded = load_recipe(path)
    problems = check_files(loaded.recipe, loaded.folder, loaded.source)
    if not problems:
        check_recipe(loaded)
        return []
    with pytest.raises(RecipeError) as raised:
        check_recipe(loaded)
    assert raised.value.problems == tuple(problems) and raised.value.exit_code == 2
    return [line.removeprefix(f"{path}:") for line in str(raised.value).splitlines()]


def recipe(base: str = "./base", path: str = "rows.jsonl", rest: str = "") -> str:
    return (
        f"name: x\nmodel: {{base: {base}}}\nstages:\n  sft:\n    kind: sft\n    data: [{{path: {path}}}]\n    {rest}\n"
    )


@pytest.mark.parametrize("name", ["./base", "base", "org/name", "meta-llama/Llama-3.2-1B"])
def test_good_bases(write: Write, base: Path, name: str) -> None:
    assert told(write(recipe(name))) == []


def test_a_real_checkpoint(write: Write, shared: Path) -> None:
    assert told(write(recipe(str(shared / "models" / "stories260K")))) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./bse", "no such folder: {folder}/bse (did you mean 'base'?)"),
        ("bse", "'bse' is neither a folder nor a hub id such as meta-llama/Llama-2-7b-hf (did you mean 'base'?)"),
        ("a/b/c", "no such folder: {folder}/a/b/c (give a checkpoint folder or a hub id such as org/name)"),
        ("base/llama", "no such folder: {folder}/base/llama (give a checkpoint folder or a hub id such as org/name)"),
        ("org/na me", "'org/na me' is neither a folder nor a hub id such as meta-llama/Llama-2-7b-hf"),
        ("rows.jsonl", "{folder}/rows.jsonl is a file (give the checkpoint's folder)"),
    ],
)
def test_an_unknown_base(write: Write, base: Path, name: str, message: str) -> None:
    path = write(recipe(name))
    assert told(path) == [f"2: model.base: {message.format(folder=path.parent)}"]


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def put(name: str, content: str | bytes) -> Callable[[Path], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw) and None


LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([remove("config.json")], "has no config.json: not a Hugging Face checkpoint folder"),
        ([remove("config.json"), put("params.json", "{}")], "is a checkpoint in Meta's own format"),
        ([remove("config.json"), put("adapter_config.json", "{}")], "is an adapter, not a base (give it as start_from"),
        ([put("config.json", "{")], "is not valid JSON"),
        ([put("config.json", "[]")], "does not hold a JSON object"),
        ([put("config.json", '{"model_type": "mistral"}')], "is a model of type 'mistral'; only LLaMA text models"),
        ([put("config.json", '{"model_type": "mllama"}')], "is a model of type 'mllama'; only LLaMA text models"),
        ([put("config.json", '{"model_type": "llama"}')], "lacks hidden_size, num_hidden_layers, vocab_size"),
        ([put("config.json", json.dumps({**LLAMA, "auto_map": {}}))], "runs no remote code"),
        ([remove("tokenizer.json")], "has no tokenizer (tokenizer.json or tokenizer.model)"),
        ([remove("tokenizer.json"), put("tokenizer.model", POINTER)], "is a git-lfs pointer"),
        ([remove("model.safetensors")], "has no weights (*.safetensors)"),
        ([remove("model.safetensors"), put("pytorch_model.bin", b"x")], "only pickled weights (pytorch_model.bin)"),
        ([remove("model.safetensors"), put("consolidated.00.pth", b"x")], "only pickled weights (consolidated.00.pth)"),
        ([put("model.safetensors", POINTER)], "is a git-lfs pointer, not the file itself (run `git lfs pull`"),
        ([put("model.safetensors", b"")], "model.safetensors is empty"),
        ([put("model.safetensors", (99).to_bytes(8, "little") + b"{}")], "is cut off or no safetensors file"),
        ([put("model.safetensors", (2).to_bytes(8, "little") + b"[]")], "is no safetensors file"),
        ([put("model.safetensors.index.json", '{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')],
         "lacks model-00002-of-00002.safetensors (the download is not complete)"),
        ([put("model.safetensors.index.json", "{}")], "has no weight_map"),
    ],
)  # fmt: skip
def test_a_base_that_lacks_something(
    write: Write, base: Path, changes: list[Callable[[Path], None]], words: str
) -> None:
    for change in changes:
        change(base)
    [message] = told(write(recipe()))
    assert message.startswith("2: model.base: ")
    assert words in message


def test_pickled_weights_say_how_to_convert(write: Write, base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    [message] = told(write(recipe()))
    assert "save_pretrained" in message and "can run code" in message


def test_a_truncated_download_says_how_long_it_should_be(write: Write, base: Path) -> None:
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3])
    [message] = told(write(recipe()))
    assert f"cut off: {len(whole) - 3:,} of {len(whole):,} bytes" in message


def test_all_that_a_base_lacks_is_told_at_once(write: Write, base: Path) -> None:
    (base / "tokenizer.json").unlink()
    (base / "model.safetensors").unlink()
    assert len(told(write(recipe()))) == 2


def test_a_revision_of_a_folder(write: Write, base: Path) -> None:
    [message] = told(write(recipe("./base, revision: main")))
    assert message == "2: model.revision: a revision belongs to a hub base; this is a folder"


def test_data_files(write: Write, base: Path, tmp_path: Path) -> None:
    for name in ("empty.jsonl", "rows.xlsx", "rows.CSV"):
        (tmp_path / name).write_text("" if name == "empty.jsonl" else "x")
    for name, file in (("none", "notes.md"), ("hollow", "a.jsonl"), ("full", "b.parquet")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("" if name == "hollow" else "x")
    assert told(write(recipe(path="rows.jsonl"))) == []
    assert told(write(recipe(path="rows.CSV"))) == []
    assert told(write(recipe(path="full"))) == []
    known = ".jsonl, .json, .csv, .parquet, .txt"
    for path, message in {
        "row.jsonl": f"no such file or folder: {tmp_path}/row.jsonl (did you mean 'rows.jsonl'?)",
        "gone/x.jsonl": f"no such file or folder: {tmp_path}/gone/x.jsonl",
        "empty.jsonl": f"{tmp_path}/empty.jsonl is empty",
        "rows.xlsx": f"rows.xlsx: data files end in {known}",
        "none": f"the folder {tmp_path}/none holds no {known} file",
        "hollow": f"the folder {tmp_path}/hollow holds only empty files",
    }.items():
        assert told(write(recipe(path=path))) == [f"6: stages.sft.data[0].path: {message}"]


def test_held_out_data_and_hub_names(write: Write, base: Path) -> None:
    path = write(
        recipe(rest="held_out: {data: [{path: gone.jsonl}, {hub: ./rows.jsonl}, {hub: org/set}, {hub: gsm8k}]}")
    )
    assert told(path) == [
        f"7: stages.sft.held_out.data[0].path: no such file or folder: {path.parent}/gone.jsonl",
        "7: stages.sft.held_out.data[1].hub: expected a hub data set such as org/name; found './rows.jsonl' "
        "(write path: ./rows.jsonl)",
    ]


def test_an_adapter_to_start_from(write: Write, base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    path = write(recipe(rest="start_from: ./adapter"))
    assert told(path) == [f"7: stages.sft.start_from: no such adapter folder: {adapter}"]
    adapter.mkdir()
    assert "has no adapter_config.json" in told(path)[0]
    (adapter / "adapter_config.json").write_text("{}")
    assert "has no adapter_model.safetensors" in told(path)[0]
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    assert told(path) == []
    assert told(write(recipe(rest="start_from: adapter"))) == []


def test_paths_are_relative_to_the_recipe(
    write: Write, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(recipe())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert told(path) == []


LONG = "x" * 5000


def test_paths_that_no_disk_takes(write: Write) -> None:
    path = write(recipe(f"./{LONG}", f"{LONG}.jsonl", rest=f"start_from: ./{LONG}"))
    assert [line.rpartition(": ")[2] for line in told(path)] == ["File name too long"] * 3
    [message] = told(write(recipe("~no-such-user/base")))
    assert message.startswith("2: model.base: no such folder: ")
    for quoted in told(write(recipe('"./a\\0b"', '"a\\0b.jsonl"'))):
        assert "no such" in quoted
