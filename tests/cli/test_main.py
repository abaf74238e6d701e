from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

from finetune import __version__
from finetune.cli.main import COMMANDS, cli, main
from finetune.errors import (
    CheckpointError,
    DataError,
    FinetuneError,
    InterruptedRunError,
    Problem,
    RecipeError,
)
from finetune.quiet import quiet_libraries

HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "accelerate", "bitsandbytes", "pandas", "pyarrow", "numpy")

GOOD = """\
name: chat
model: {base: org/model}
stages:
  sft: {kind: sft, data: [{path: rows.jsonl}]}
"""


def written() -> dict[str, str]:
    """Commands whose module exists: name → module."""
    modules = {name: target.partition(":")[0] for name, (target, _) in COMMANDS.items()}
    return {name: module for name, module in modules.items() if importlib.util.find_spec(module)}


def imported(root: Path, cwd: Path, *args: str) -> tuple[int, set[str]]:
    """Run the command in a fresh process: its exit code and the top-level modules that it imported."""
    code = (
        "import sys\n"
        "from finetune.cli.main import main\n"
        f"code = main({list(args)!r})\n"
        "print('\\nMODULES', code, *{name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "MODULES" in done.stdout, done.stderr
    exit_code, *modules = done.stdout.rpartition("MODULES")[2].split()
    return int(exit_code), set(modules)


def test_help_imports_click_and_nothing_else(root: Path, tmp_path: Path) -> None:
    code, modules = imported(root, tmp_path, "--help")
    assert code == 0
    assert "click" in modules
    assert not modules & {*HEAVY, "pydantic", "rich", "yaml", "huggingface_hub", "jinja2"}


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize("text", [GOOD, GOOD.replace("sft}", "stf}").replace("name", "nam")])
def test_reading_and_planning_import_no_torch(root: Path, tmp_path: Path, command: str, text: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    code, modules = imported(root, tmp_path, command, "recipe.yaml")
    assert not modules & set(HEAVY)
    assert "pydantic" in modules
    if command == "check":
        assert code == (0 if text == GOOD else 2)


def test_every_command_has_a_help_line_and_an_example_to_paste() -> None:
    found = written()
    assert {"check", "init"} <= set(found)
    for name in found:
        module, _, attribute = COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        text = command.help or ""
        assert "Example:" in text, f"finetune {name} --help has no example"
        assert f"  finetune {name}" in text.partition("Example:")[2], (
            f"finetune {name}: the example runs something else"
        )
        assert len(text.partition("Example:")[0].split()) > 5, f"finetune {name} --help does not say what it does"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"finetune {name} {parameter.opts[0]} is not explained"


def test_every_command_prints_its_help(capfd: pytest.CaptureFixture[str]) -> None:
    for name in written():
        assert main([name, "--help"]) == 0
        assert f"finetune {name}" in capfd.readouterr().out


def test_help_and_version(finetune: Any) -> None:
    listed = finetune("--help")
    assert listed.returncode == 0 and listed.stderr == ""
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in listed.stdout and text in listed.stdout
    assert finetune("--version").stdout == f"finetune, version {__version__}\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["check"], "Missing argument 'RECIPE'"),
        (["check", "--st", "a=b"], "No such option"),
        (["--nope"], "No such option"),
    ],
)
def test_wrong_usage_is_2(capfd: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert main(args) == 2
    assert words in capfd.readouterr().err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "get_command", lambda context, name: fails)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("not JSON", path="a.jsonl", line=3), 2, "Error: a.jsonl:3: not JSON\n"),
        (CheckpointError("cannot be read"), 1, "Error: cannot be read\n"),
        (FinetuneError("failed"), 1, "Error: failed\n"),
        (InterruptedRunError("stopped; run it again to go on"), 130, "stopped; run it again to go on\n"),
        (RecipeError([Problem("a", line=1), Problem("b", "k", line=2)], "r.yaml"), 2, "r.yaml:1: a\nr.yaml:2: k: b\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_errors_become_one_message_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    raising(monkeypatch, error)
    assert main(["anything"]) == code
    out, err = capfd.readouterr()
    assert out == "" and err.lstrip("\n") == message


@pytest.mark.parametrize("error", [RuntimeError("not ours"), EOFError("Ran out of input"), OSError("disk on fire")])
def test_what_is_not_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raising(monkeypatch, error)
    with pytest.raises(type(error)) as raised:
        main(["anything"])
    assert raised.value is error


def test_telemetry_is_off_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRL_EXPERIMENTAL_SILENCE", "WANDB_ERROR_REPORTING")
    for name in names:
        monkeypatch.setenv(name, "x")  # so that the test's end restores what was there
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "false")
    quiet_libraries()
    assert [os.environ[name] for name in names] == ["1", "1", "1", "false"]
    assert os.environ["WANDB_SILENT"] == "false"


def test_huggingface_hub_sends_no_telemetry_under_the_command(root: Path, tmp_path: Path) -> None:
    """The library itself is asked, in a process that began as the command begins."""
    code = (
        "from finetune.cli.main import main\n"
        "main(['--version'])\n"
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY is True\n"
    )
    hidden = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**environment, "PYTHONPATH": str(root)}, check=True)


def test_importing_the_command_changes_nothing(root: Path) -> None:
    code = "import os; before = dict(os.environ); import finetune.cli.main; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, check=True)
