"""The house's rule, read from the source: a module imports only from its own folder or from lower floors."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "finetune"

FLOORS = {
    "__init__": 0,
    "errors": 0,
    "shapes": 0,
    "quiet": 0,
    "durable": 0,
    "recipe": 1,
    "families": 1,
    "plan": 2,
    "migrate": 2,
    "data": 3,
    "numerics": 4,
    "model": 4,
    "engine": 5,
    "stages": 6,
    "release": 6,
    "chat": 6,
    "reports": 5,
    "execute": 7,
    "evaluation": 7,
    "notebook": 7,
    "api": 8,
    "cli": 8,
    "__main__": 9,
}
TORCH_LIBRARIES = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "datasets"}
"""Importing one of these imports torch, or takes as long."""


@dataclass(frozen=True)
class Import:
    target: str  # full dotted name
    line: int
    top: bool  # runs when the module is imported


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def place(module: Path) -> str:
    """The folder of the package, or the module's own name at its top: what FLOORS lists."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import of a module, inside functions too. `package`: the packages that it lies in."""

    def visit(node: ast.AST, top: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module or "") if part)
            # `from finetune import recipe` imports the submodule: its own name counts
            yield from (Import(f"{module}.{alias.name}", node.lineno, top) for alias in node.names)
        else:
            inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                inside = False
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inside)

    yield from visit(ast.parse(source), True)


def target_place(target: str) -> str | None:
    """What FLOORS lists for an import from the package, None for other libraries."""
    parts = target.split(".")
    if parts[0] != "finetune":
        return None
    if len(parts) == 1 or not ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()):
        return "__init__"
    return parts[1]


def wrong(source: str, own: str, package: tuple[str, ...]) -> list[str]:
    """Every breach of the floors in one module's source, as "line: why"."""
    floor = FLOORS[own]
    found = []
    for entry in imports(source, package):
        library = entry.target.partition(".")[0]
        target = target_place(entry.target)
        together = own == target or (floor == 0 and FLOORS.get(str(target)) == 0)  # floor 0 is one folder
        if own == "__init__" and target == "api" and not entry.top:
            continue  # the front door names what lies behind it, and imports it when it is asked for
        if target is not None and not together and FLOORS.get(target, 99) >= floor:
            found.append(f"{entry.line}: {own} (floor {floor}) imports {entry.target} (floor {FLOORS.get(target)})")
        if entry.top and library in TORCH_LIBRARIES and (floor <= 3 or own == "cli"):
            found.append(f"{entry.line}: {library} at module level: import it inside the function that needs it")
        if library == "torch" and floor <= 2:
            found.append(f"{entry.line}: torch on floor {floor}")
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: str(module.relative_to(ROOT)))
def test_floors(module: Path) -> None:
    own = place(module)
    assert own in FLOORS, f"{module.relative_to(ROOT)} stands on no floor: give {own} one in design.md and here"
    package = module.relative_to(ROOT).parent.parts
    assert wrong(module.read_text(encoding="utf-8"), own, package) == []


def test_the_list_of_modules_is_not_empty() -> None:
    found = {str(module.relative_to(PACKAGE)) for module in modules()}
    assert {"errors.py", "recipe/schema.py", "cli/main.py"} <= found
    assert len(found) > 20


@pytest.mark.parametrize(
    ("source", "own", "breaches"),
    [
        ("from finetune.errors import InputError", "recipe", 0),
        ("from finetune.recipe.words import suggest", "recipe", 0),
        ("from finetune.families.base import Family", "recipe", 1),  # same floor, another folder
        ("def f():\n    from finetune.engine import loop", "data", 1),
        ("from finetune import recipe", "errors", 1),
        ("from finetune.errors import DiskFullError", "durable", 0),
        ("from ..plan import plan", "recipe", 1),
        ("from . import words", "recipe", 0),
        ("import finetune.stages.sft", "engine", 1),
        ("def f():\n    import torch", "data", 0),
        ("import torch", "data", 1),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "data", 1),
        ("class A:\n    from transformers import AutoConfig", "cli", 1),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", "data", 0),
        ("def f():\n    import torch", "plan", 1),
        ("def f():\n    import transformers", "families", 0),
        ("from finetune.api import run", "__init__", 1),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from finetune.api import run", "__init__", 0),
        ("import torch", "engine", 0),
    ],
)
def test_the_rule_finds_what_it_should(source: str, own: str, breaches: int) -> None:
    assert len(wrong(source, own, ("finetune", own))) == breaches


def test_low_floors_and_commands_import_without_torch() -> None:
    """Run, not read: what the modules import in turn counts too."""
    names = []
    for module in modules():
        own = place(module)
        if FLOORS[own] <= 3 or own == "cli":
            names.append(".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert len(names) > 15
    code = (
        "import sys, importlib\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {sorted(TORCH_LIBRARIES)!r}\n"
        "    assert not set(heavy) & set(sys.modules), (name, set(heavy) & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_folder_of_data_sets_is_no_package() -> None:
    """`datasets` is a library's name: a module there would shadow it for whoever works in the project's folder."""
    assert not [path for path in (ROOT / "datasets").rglob("*.py")]
