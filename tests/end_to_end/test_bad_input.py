"""Bad input of every kind: one clear message (what, where, what next), exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import QUESTIONS, Ended, Run, files_below, write_jsonl

Recipe = Callable[..., Path]
EASY = {"prompt": "Two and two?", "completion": "Four."}


@dataclass(frozen=True)
class Case:
    """words: what the message has to say. changes: of the right recipe. files: beside it. args: of the command."""

    words: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    text: bytes | None = None  # the whole recipe, where it is not YAML that could be changed


def data(name: str, content: str | bytes, *words: str, **source: Any) -> Case:
    """A data file of this name and content."""
    content = content.encode() if isinstance(content, str) else content
    return Case(words, {"stages.sft.data": [{"path": name, **source}]}, {name: content})


CASES = {
    "misspelt key": Case(
        ("recipe.yaml:20:", "stages.sft.train.learnin_rate", "unknown key", "did you mean 'learning_rate'"),
        {"stages.sft.train.learnin_rate": 0.1},
    ),
    "wrong type": Case(
        ("recipe.yaml:17:", "stages.sft.train.max_steps", "whole number", "'three'"),
        {"stages.sft.train.max_steps": "three"},
    ),
    "missing file": Case(
        ("recipe.yaml:13:", "stages.sft.data[0].path", "no such file", "did you mean 'questions.jsonl'"),
        {"stages.sft.data": [{"path": "question.jsonl"}]},
    ),
    "empty file": data("empty.jsonl", "", "recipe.yaml:13:", "empty.jsonl is empty"),
    "blank file": data("blank.jsonl", "\n\n", "blank.jsonl", "has no rows"),
    "broken JSON line": data(
        "broken.jsonl", json.dumps(EASY) + '\n{"prompt": "a", \n', "broken.jsonl:2:", "not valid JSON", "column 17"
    ),
    "broken JSON": data("broken.json", "[\n{]\n", "broken.json:2:", "not valid JSON", "column 2"),
    "wrong field": data(
        "wrong.jsonl",
        json.dumps(EASY) + '\n{"prompt": "a", "answer": "b"}\n',
        "wrong.jsonl:2:",
        "field 'completion'",
        "the fields are prompt, answer",
    ),
    "a field of a wrong type": data(
        "number.jsonl", '{"prompt": "a", "completion": 5}\n', "number.jsonl:1:", "field 'completion'", "a number (5)"
    ),
    "unknown format": data(
        "unknown.jsonl", '{"foo": "a", "bar": "b"}\n', "unknown.jsonl", "foo, bar", "prompt_completion", "format:"
    ),
    "unknown format's name": Case(
        ("recipe.yaml:14:", "stages.sft.data[0].format", "'alpacca'", "did you mean 'alpaca'"),
        {"stages.sft.data": [{"path": "questions.jsonl", "format": "alpacca"}]},
    ),
    "data in Latin-1": data(
        "latin.jsonl", '{"prompt": "é", "completion": "b"}\n'.encode("latin-1"), "latin.jsonl:1:", "not UTF-8", "0xe9"
    ),
    "CSV without the columns": data("table.csv", "a,b\n1,2\n", "table.csv", "a, b", "Known formats"),
    "CSV without the columns, format named": data(
        "table.csv", "a,b\n1,2\n", "table.csv:2", "field 'prompt'", "a, b", format="prompt_completion"
    ),
    "Parquet that is none": data("table.parquet", "hello", "table.parquet", "not a Parquet file"),
    "data of an unknown type": data("rows.xlsx", "hello", "rows.xlsx", ".jsonl", ".parquet"),
    "a long text": Case(
        ("questions.jsonl:1:", "32 tokens", "model.max_length 12", "too_long"),
        {"model.max_length": 12, "stages.sft.too_long": "error"},
    ),
    "all rows too long": Case(
        ("no row is left", "32 longer than max_length", "questions.jsonl:1: 32 tokens", "model.max_length (now 12)"),
        {"model.max_length": 12},
    ),
    "all prompts too long": Case(
        ("no row is left", "32 prompt longer than max_length", "model.max_length (now 12)"),
        {"model.max_length": 12, "stages.sft.too_long": "truncate"},
    ),
    "all rows held out": Case(
        ("no row is left", "32 equal to a held-out row"),
        {"stages.sft.held_out": {"data": [{"path": "questions.jsonl"}]}},
    ),
    "early stop without held-out rows": Case(
        ("stages.sft.train.early_stop", "held_out.fraction is 0"),
        {"stages.sft.held_out": {"fraction": 0}, "stages.sft.train.early_stop": 2},
    ),
    "unknown base, a folder": Case(("recipe.yaml:3:", "model.base", "no such folder"), {"model.base": "./nobody"}),
    "unknown base, a word": Case(
        ("recipe.yaml:3:", "model.base", "'llama' is neither a folder nor a hub id"), {"model.base": "llama"}
    ),
    "unknown base, no hub": Case(
        ("nobody/nothing", "the hub could not be reached", "give a folder"), {"model.base": "nobody/nothing"}
    ),
    "no GPU": Case(("model.device is cuda", "use auto or cpu"), {"model.device": "cuda"}),
    "no such target": Case(("adapter.targets", "'w_proj'", "q_proj"), {"adapter.targets": ["w_proj"]}),
    "a pattern without a match": Case(
        ("adapter.targets", "'foo.*' matches no linear layer", "model.layers.0.self_attn.q_proj"),
        {"adapter.targets": "foo.*"},
    ),
    "a broken pattern": Case(("adapter.targets", "'foo(' is not a regular expression"), {"adapter.targets": "foo("}),
    "no such module to save": Case(("adapter.modules_to_save", "'head'"), {"adapter.modules_to_save": ["head"]}),
    "pissa on nf4": Case(
        ("recipe.yaml:", "adapter.init", "pissa", "nf4", "bf16 or fp32"),
        {"adapter.init": "pissa", "model.load_in": "nf4"},
    ),
    "pissa of a rank too high": Case(
        ("adapter.rank 64", "pissa", "32 dimensions", "smaller rank"), {"adapter.init": "pissa", "adapter.rank": 64}
    ),
    "pissa and a module to save": Case(
        ("adapter.init", "pissa", "modules_to_save"), {"adapter.init": "pissa", "adapter.modules_to_save": ["lm_head"]}
    ),
    "pissa and dora": Case(("adapter.init", "pissa", "dora"), {"adapter.init": "pissa", "adapter.dora": True}),
    "orthogonal of an odd rank": Case(
        ("adapter.init", "orthogonal", "even"), {"adapter.init": "orthogonal", "adapter.rank": 3}
    ),
    "a micro-batch larger than the batch": Case(
        ("recipe.yaml:20:", "micro_batch_size", "more than batch_size 4"), {"stages.sft.train.micro_batch_size": 8}
    ),
    "no adapter to start from": Case(
        ("stages.sft.start_from", "no such adapter folder"), {"stages.sft.start_from": "./nothing"}
    ),
    "an unknown stage to start from": Case(
        ("stages.sft.start_from", "'first' is neither a stage above nor an adapter folder"),
        {"stages.sft.start_from": "first"},
    ),
    "a run's name that leaves the folder": Case(("recipe.yaml:1: name:", "'../up'"), {"name": "../up"}),
    "--set without a value": Case(("--set foo", "key.path=value"), args=("--set", "foo")),
    "--set of an unknown key": Case(("foo: unknown key", "--set foo.bar=1"), args=("--set", "foo.bar=1")),
    "--set of a wrong type": Case(
        ("stages.sft.train.max_steps", "'many'", "--set"), args=("--set", "stages.sft.train.max_steps=many")
    ),
    "--set of a source that is not there": Case(
        ("stages.sft.data", "entries 0 to 0"), args=("--set", "stages.sft.data.5.path=x")
    ),
    "tabs": Case(("recipe.yaml:3:", "a tab cannot indent YAML"), text=b"name: a\nmodel:\n\tbase: b\n"),
    "a recipe in UTF-16": Case(("recipe.yaml:1:", "not UTF-8"), text="name: a\n".encode("utf-16")),
    "an empty recipe": Case(("recipe.yaml:", "the file is empty", "finetune init"), text=b""),
}


def assert_refused(ended: Ended, runs: Path, *words: str) -> None:
    """Exit code 2, the words in one message without a traceback, and neither a run nor a part of one."""
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert all(word in ended.err for word in words), ended.err
    kept = [name for name in files_below(runs) if not name.startswith(".cache") and name != "tiny"]
    assert kept == []
    assert not [name for name in files_below(runs) if ".part" in name]


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, recipe: Recipe, finetune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    case = CASES[name]
    path = recipe(case.changes)
    for file, content in case.files.items():
        (tmp_path / file).write_bytes(content)
    if case.text is not None:
        path.write_bytes(case.text)
    ended = finetune("sft", path, "--runs", tmp_path / "runs", *case.args)
    assert_refused(ended, tmp_path / "runs", *case.words)


def test_a_folder_is_no_recipe(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    recipe()
    assert_refused(finetune("sft", tmp_path, "--runs", tmp_path / "runs"), tmp_path / "runs", str(tmp_path), "director")


def test_a_recipe_that_is_not_there(finetune: Run, tmp_path: Path) -> None:
    ended = finetune("sft", tmp_path / "none.yaml", "--runs", tmp_path / "runs")
    assert_refused(ended, tmp_path / "runs", "none.yaml", "no such file", "finetune init")


def test_runs_that_cannot_lie_there(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    path = recipe()
    ended = finetune("sft", path, "--runs", path / "runs")
    assert_refused(ended, tmp_path / "runs", str(path / "runs"), "--runs")


# Bases


def edited_config(**changes: Any) -> Callable[[Path], None]:
    def edit(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def cut(name: str, size: int) -> Callable[[Path], None]:
    def edit(base: Path) -> None:
        (base / name).write_bytes((base / name).read_bytes()[:size])

    return edit


def pickled(base: Path) -> None:
    import torch

    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")


def without_a_tensor(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})


BASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), ("has no tokenizer", "tokenizer.model")),
    "a broken tokenizer": (cut("tokenizer.json", 100), ("tokenizer.json", "is not a tokenizer that can be read")),
    "pickled weights": (pickled, ("pickled weights (pytorch_model.bin)", "save_pretrained")),
    "cut off weights": (cut("model.safetensors", 5000), ("model.safetensors is cut off", "5,000 of", "download")),
    "weights cut in the header": (cut("model.safetensors", 100), ("model.safetensors is cut off", "download")),
    "a missing weight": (without_a_tensor, ("model.layers.1.mlp.up_proj.weight", "complete")),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), ("has no weights (*.safetensors)",)),
    "no config": (lambda base: (base / "config.json").unlink(), ("has no config.json",)),
    "a broken config": (cut("config.json", 100), ("config.json", "is not valid JSON")),
    "another architecture": (edited_config(model_type="mistral"), ("'mistral'", "LLaMA")),
    "code of its own": (edited_config(auto_map={"AutoModel": "x.Y"}), ("auto_map", "no remote code")),
    "already quantised": (
        edited_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ("already quantised (gptq)", "original"),
    ),
    "a size that is text": (edited_config(hidden_size="64"), ("hidden_size should be a whole number", "'64'")),
    "another vocabulary": (
        edited_config(vocab_size=600),
        ("lm_head.weight has the shape [512, 64]", "[600, 64]", "same checkpoint"),
    ),
    "fewer layers than weights": (
        edited_config(num_hidden_layers=1),
        ("9 weights that its config.json knows nothing of", "model.layers.1."),
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_bad_base(name: str, recipe: Recipe, finetune: Run, tmp_path: Path, tiny_base: Path) -> None:
    edit, words = BASES[name]
    base = tmp_path / "broken"
    shutil.copytree(tiny_base, base)
    edit(base)
    ended = finetune("sft", recipe({"model.base": "./broken"}), "--runs", tmp_path / "runs")
    assert_refused(ended, tmp_path / "runs", str(base), *words)
    assert "LOAD REPORT" not in ended.err  # transformers' table: all it says is in the message


@pytest.fixture(scope="module")
def narrow(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of half the width, with 300 words, beside the tokenizer of the other one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bases") / "narrow"
    shutil.copytree(tiny_base, folder)
    torch.manual_seed(2)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=300
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_tokenizer_of_another_base(recipe: Recipe, finetune: Run, tmp_path: Path, narrow: Path) -> None:
    ended = finetune("sft", recipe({"model.base": str(narrow)}), "--runs", tmp_path / "runs")
    assert_refused(ended, tmp_path / "runs", "tokenizer gives the id 486", "vocab_size 300", "same one")


# Adapters to start from


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `good`, an adapter of the tiny base as peft writes it, and `narrow`, one of the narrow base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(3)
    for name, base in {"good": tiny_base, "narrow": narrow}.items():
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"])
        get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(root / name)
    return root


def other_targets(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["w_proj"]}))


def without_lora_b(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "lora_A" in k}, adapter / "adapter_model.safetensors")


ADAPTERS: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "another base's": ("narrow", lambda folder: None, ("does not fit this base", "size mismatch", "[2, 32]")),
    "cut off": ("good", cut("adapter_model.safetensors", 1000), ("is damaged", "header")),
    "without half of its weights": ("good", without_lora_b, ("missing adapter keys", "lora_B")),
    "for modules that are not there": ("good", other_targets, ("does not fit this base", "w_proj")),
    "a broken configuration": ("good", cut("adapter_config.json", 10), ("adapter_config.json is not",)),
    "without weights": (
        "good",
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        ("has no adapter_model.safetensors",),
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_bad_start(name: str, recipe: Recipe, finetune: Run, tmp_path: Path, adapters: Path) -> None:
    source, edit, words = ADAPTERS[name]
    shutil.copytree(adapters / source, tmp_path / "adapter")
    edit(tmp_path / "adapter")
    ended = finetune("sft", recipe({"stages.sft.start_from": "./adapter"}), "--runs", tmp_path / "runs")
    assert_refused(ended, tmp_path / "runs", str(tmp_path / "adapter"), *words)


def test_a_good_start(recipe: Recipe, finetune: Run, tmp_path: Path, adapters: Path) -> None:
    """What the bad ones are bad copies of works, and says that the recipe's adapter section is not used."""
    ended = finetune("sft", recipe({"stages.sft.start_from": str(adapters / "good")}), "--runs", tmp_path / "runs")
    assert ended.code == 0, ended.err
    assert "rank 2, alpha 4" in ended.out


def test_pissa_goes_on_as_an_ordinary_adapter(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    """The second stage starts from an adapter for the untouched base: it must not be converted once more."""
    again = {
        "kind": "sft",
        "start_from": "sft",
        "data": [{"path": "questions.jsonl"}],
        "train": {"max_steps": 2, "batch_size": 4},
    }
    ended = finetune("sft", recipe({"adapter.init": "pissa", "stages.again": again}), "--runs", tmp_path / "runs")
    assert ended.code == 0, ended.err


# The disk


def test_too_little_disk_is_found_before_training(
    recipe: Recipe, finetune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2**20))
    ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert_refused(ended, tmp_path / "runs", "stage sft needs about", "only 1 MiB are free", "--runs")
    assert "step 1" not in ended.err


FILL_WHILE_TRAINING = """
mount -t tmpfs -o size=40m tmpfs disk || exit 99
"$@" > first.out 2> first.err & process=$!
until ls -d disk/runs/tiny/*.part/work/checkpoints/step-???????? > /dev/null 2>&1; do
  kill -0 $process 2> /dev/null || break
  sleep 0.05
done
dd if=/dev/zero of=disk/ballast bs=64k 2> /dev/null
wait $process
echo $? > first.code
find disk/runs -not -path '*/.cache*' > first.files
rm disk/ballast
"$@" > second.out 2> second.err
echo $? > second.code
cp -r disk/runs finished
"""


def private_mounts() -> list[str]:
    """A command that runs another where it may mount what nobody else sees; skips where that is not allowed."""
    for command in (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"]):
        if shutil.which("unshare"):
            probe = [*command, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
            if subprocess.run(probe, capture_output=True).returncode == 0:
                return command
    pytest.skip("a disk of its own cannot be mounted here: neither root nor user namespaces")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training(
    recipe: Recipe, command: list[str], subprocess_env: dict[str, str], tmp_path: Path
) -> None:
    """A real full disk, in the middle of the run: one message, the checkpoint is kept, and with space it goes on."""
    unshare = private_mounts()
    (tmp_path / "disk").mkdir()
    path = recipe({"stages.sft.train": {"max_steps": 200, "checkpoint_every": 8, "batch_size": 4}})
    run = [*command, "sft", str(path), "--runs", "disk/runs"]
    script = ["sh", "-c", FILL_WHILE_TRAINING, "sh", *run]
    subprocess.run([*unshare, *script], cwd=tmp_path, env=subprocess_env, timeout=300, check=True)

    def left(name: str) -> str:
        return (tmp_path / name).read_text()

    assert left("first.code").strip() == "2", left("first.err")
    assert "the disk is full" in left("first.err")
    assert "Free some space and run the same command again" in left("first.err")
    assert "Traceback" not in left("first.err")
    assert "manifest.json" not in left("first.files")
    assert "work/checkpoints/step-" in left("first.files")

    assert left("second.code").strip() == "0", left("second.err")
    assert "resumed from the checkpoint of step" in left("second.err")
    [folder] = (tmp_path / "finished" / "tiny").iterdir()
    steps = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([loss for loss in steps if loss is not None]) == 200


# Several processes


@pytest.mark.slow
def test_a_second_process_on_the_same_run(
    recipe: Recipe, finetune: Run, command: list[str], subprocess_env: dict[str, str], tmp_path: Path
) -> None:
    path, runs = recipe({"stages.sft.train.max_steps": 1_000_000}), tmp_path / "runs"
    args = [*command, "sft", str(path), "--runs", str(runs)]
    first = subprocess.Popen(args, env=subprocess_env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 120
        while not list(runs.glob("tiny/*.part/work/metrics.jsonl")):
            assert first.poll() is None and time.monotonic() < until, "the first process never began to train"
            time.sleep(0.05)
        [lock] = runs.glob("tiny/*.lock")
        assert lock.read_text().strip() == str(first.pid)

        second = finetune("sft", path, "--runs", runs)

        assert second.code == 2
        assert f"pid {first.pid}" in second.err and "wait" in second.err
        assert first.poll() is None, "the second process disturbed the first"
        first.send_signal(signal.SIGINT)
        _, told = first.communicate(timeout=60)
        assert first.returncode == 130
        assert "a checkpoint is saved" in told and "same command again" in told
    finally:
        first.kill()
        first.communicate()
    assert not list(runs.glob("tiny/*.lock"))


@pytest.mark.slow
def test_torchrun_is_refused(recipe: Recipe, subprocess_env: dict[str, str], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "finetune.cli.main"]
    done = subprocess.run(
        [*launcher, "sft", str(recipe()), "--runs", str(tmp_path / "runs")],
        env=subprocess_env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "started as one of 2 processes" in done.stderr and "Start it with plain `finetune`" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_launcher_without_a_launcher(
    recipe: Recipe, finetune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert_refused(ended, tmp_path / "runs", "started as one of 4 processes")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert finetune("sft", recipe(), "--runs", tmp_path / "runs").code == 0


# Numbers


def test_a_loss_that_is_not_a_number(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    """Exit code 1: the work failed. The step and its rows are named, and nothing is called finished."""
    path = recipe({"stages.sft.train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e30, "warmup": 0}})
    ended = finetune("sft", path, "--runs", tmp_path / "runs")
    assert ended.code == 1
    assert "step 2" in ended.err and "nan" in ended.err and "questions.jsonl:" in ended.err
    assert "learning_rate" in ended.err and "Traceback" not in ended.err
    assert [name for name in files_below(tmp_path / "runs") if name.endswith("manifest.json")] == []
    assert all(folder.name.endswith(".part") for folder in (tmp_path / "runs" / "tiny").iterdir())


def test_a_base_that_is_not_a_number(recipe: Recipe, finetune: Run, tmp_path: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tmp_path / "nan"
    shutil.copytree(tiny_base, base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"][0, 0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    ended = finetune("sft", recipe({"model.base": "./nan"}), "--runs", tmp_path / "runs")
    assert ended.code == 1
    assert "held-out loss after step 0 is nan" in ended.err and "the base" in ended.err


# What a run that was refused leaves to the next one


def test_a_right_recipe_after_a_wrong_one(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [*QUESTIONS, {"prompt": "Two?"}])
    changes = {"stages.sft.data": [{"path": "rows.jsonl"}]}
    assert finetune("sft", recipe(changes), "--runs", tmp_path / "runs").code == 2
    write_jsonl(tmp_path / "rows.jsonl", QUESTIONS)
    assert finetune("sft", recipe(changes), "--runs", tmp_path / "runs").code == 0
    [folder] = (tmp_path / "runs" / "tiny").iterdir()
    assert (folder / "manifest.json").is_file()


def test_an_input_error_never_removes_a_checkpoint(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    """A run that has come some way is not thrown away because the disk is full when it is resumed."""
    path, runs = recipe(), tmp_path / "runs"
    assert finetune("sft", path, "--runs", runs).code == 0
    [folder] = (runs / "tiny").iterdir()
    checkpoint = folder.with_name(folder.name + ".part") / "work" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    shutil.rmtree(folder)
    with pytest.MonkeyPatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=2**20))
        assert finetune("sft", path, "--runs", runs).code == 2
    assert checkpoint.is_dir()


def test_keyboard_interrupt_is_no_error_of_input(recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    """The signal arrives while training: exit code 130, a checkpoint, and the same command ends the run."""
    import threading

    path, runs = recipe({"stages.sft.train.max_steps": 300}), tmp_path / "runs"

    def interrupt() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if any(file.stat().st_size for file in runs.glob("tiny/*.part/work/metrics.jsonl")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ended = finetune("sft", path, "--runs", runs)
    thread.join()
    assert ended.code == 130 and "a checkpoint is saved" in ended.err
    again = finetune("sft", path, "--runs", runs)
    assert again.code == 0 and "resumed from the checkpoint" in again.err


# Runs that were touched


@pytest.fixture
def run_folder(recipe: Recipe, finetune: Run, tmp_path: Path) -> Path:
    """A finished run of recipe.yaml."""
    assert finetune("sft", recipe(), "--runs", tmp_path / "runs").code == 0
    [folder] = (tmp_path / "runs" / "tiny").iterdir()
    return folder


def test_a_damaged_run_is_not_called_done(run_folder: Path, recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    assert "already done" in finetune("sft", recipe(), "--runs", tmp_path / "runs").out
    cut("adapter_model.safetensors", 1000)(run_folder)
    ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert ended.code == 2
    assert "adapter_model.safetensors has 1000 bytes" in ended.err and "move it away" in ended.err


def test_a_folder_without_a_manifest_is_found_before_training(
    run_folder: Path, recipe: Recipe, finetune: Run, tmp_path: Path
) -> None:
    (run_folder / "manifest.json").unlink()
    ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert ended.code == 2 and "step 1" not in ended.err
    assert str(run_folder) in ended.err and "no manifest" in ended.err and "Move it away" in ended.err
    assert (run_folder / "adapter_model.safetensors").is_file()


def test_a_broken_manifest(run_folder: Path, recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    (run_folder / "manifest.json").write_text("{")
    for command in ("sft", "show", "plan"):
        ended = finetune(command, recipe(), "--runs", tmp_path / "runs")
        assert ended.code == 2
        assert "manifest.json is not valid JSON" in ended.err and "away to run the stage again" in ended.err


def test_a_checkpoint_of_another_version(run_folder: Path, recipe: Recipe, finetune: Run, tmp_path: Path) -> None:
    """Whole by its hashes, but not what this version would have written: exit code 1, and what to remove."""
    import torch

    from finetune.engine.checkpoint import Checkpoint, random_state, write_checkpoint

    part = run_folder.with_name(run_folder.name + ".part")
    state = {"progress": {"of": "another version"}, "stopped_early": False}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict()
    written = Checkpoint(2, {"a": torch.zeros(1)}, optimizer, random_state(), state)
    write_checkpoint(part / "work" / "checkpoints", written, keep=1)
    shutil.rmtree(run_folder)
    ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert ended.code == 1
    assert "the checkpoint of step 2" in ended.err and "does not fit" in ended.err
    assert f"Remove {part} to start this stage again" in ended.err


@pytest.mark.slow
def test_a_tracking_server_that_does_not_answer(
    recipe: Recipe, command: list[str], subprocess_env: dict[str, str], tmp_path: Path
) -> None:
    path = recipe({"track.wandb": {"project": "none"}})
    env = {
        **subprocess_env,
        "WANDB_API_KEY": "0123456789" * 4,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "3",
    }
    run = [*command, "sft", str(path), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120)
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert_refused(ended, tmp_path / "runs", "track.wandb", "mode: offline")
