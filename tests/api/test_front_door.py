"""`import finetune as ft`: every name of the API, nothing imported before it is asked for."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import finetune
import finetune as ft
from finetune import api
from finetune.cli.eval import evaluate

SOURCE = Path(finetune.__file__)


def test_every_name_is_offered_and_told_to_editors() -> None:
    """The names at run time and those that mypy and editors read are the same, and each leads to the API's own."""
    told = {
        alias.asname
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "finetune.api"
        for alias in node.names
    }
    assert told == set(finetune._NAMES) <= set(dir(finetune))
    for name in told:
        assert getattr(ft, name) is getattr(api, name)
    assert ft.__version__


def test_no_name_is_a_module_too() -> None:
    """Python would put a module or package in a function's place as soon as somebody imports it."""
    modules = {path.stem for path in SOURCE.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & finetune._NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ft, "trian")


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    """The package alone costs nothing; the API itself brings no torch, also not when a recipe is planned."""
    code = (
        "import sys, finetune as ft\n"
        "assert 'pydantic' not in sys.modules and 'finetune.api' not in sys.modules\n"
        "dir(ft)\n"
        "assert 'finetune.api' not in sys.modules\n"
        "ft.Recipe, ft.run, ft.load, ft.publish\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'IPython', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE.parent.parent)
    assert done.returncode == 0, done.stderr


def test_evaluate_has_the_options_of_the_command() -> None:
    of_the_terminal = {"stage_name", "overrides", "runs", "out", "as_json"}
    names = {option.name for option in evaluate.params} - of_the_terminal
    assert names <= set(inspect.signature(ft.evaluate).parameters)


def test_everything_is_documented_with_an_example() -> None:
    """Every public function, class and method of the API has a docstring; functions and classes an example."""
    guide = (SOURCE.parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
    for name in sorted(finetune._NAMES):
        thing = getattr(ft, name)
        assert thing.__doc__, name
        assert f"ft.{name}" in guide or name in guide, f"docs/api.md says nothing of {name}"
        if isinstance(thing, type):
            for method, value in vars(thing).items():
                public = not method.startswith("_") and callable(getattr(thing, method))
                assert not public or (value.__doc__ or getattr(value, "__func__", value).__doc__), f"{name}.{method}"
        else:
            assert f"ft.{name}(" in thing.__doc__, f"the docstring of {name} has no example"
