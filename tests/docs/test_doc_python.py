"""Every Python block in the guides compiles, and names only what the package has."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
from guides import Block, blocks, pages


def python_blocks() -> list[Block]:
    return [block for path in pages() for block in blocks(path) if block.language == "python"]


def top_level(module: str) -> set[str]:
    """Names that a module of the package defines or imports, read without running it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"no module {module}"
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def problems(code: str, api: Any) -> list[str]:
    """api: what `import finetune as ft` gives."""
    tree = ast.parse(code)
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "finetune":
            if node.module == "finetune":
                wrong += [f"finetune has no {alias.name}" for alias in node.names if not hasattr(api, alias.name)]
            elif importlib.util.find_spec(str(node.module)) is None:
                wrong.append(f"no module {node.module}")
            else:
                known = top_level(str(node.module))
                wrong += [f"{node.module} has no {alias.name}" for alias in node.names if alias.name not in known]
        elif isinstance(node, ast.Attribute) and (dotted(node) or "").startswith("ft."):
            wrong += [f"there is no {dotted(node)}"] * (resolve(api, str(dotted(node))) is None)
        if isinstance(node, ast.Call) and (name := dotted(node.func)) and name.startswith("ft."):
            wrong += call_problems(resolve(api, name), node, name)
    return wrong


def dotted(node: ast.AST) -> str | None:
    """`ft.Recipe.load` of such an expression, None of any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return None


def resolve(api: Any, name: str) -> Any:
    value = api
    for part in name.split(".")[1:]:
        value = getattr(value, part, None)
    return value


def call_problems(function: Any, call: ast.Call, name: str) -> list[str]:
    """Whether the call's arguments fit the function's signature."""
    if function is None:
        return []  # told where the name was met
    given = [argument for argument in call.args if not isinstance(argument, ast.Starred)]
    if len(given) < len(call.args) or any(keyword.arg is None for keyword in call.keywords):
        return []
    try:
        inspect.signature(function).bind(*given, **{str(keyword.arg): None for keyword in call.keywords})
    except TypeError as error:
        return [f"{name}: {error}"]
    return []


@pytest.mark.parametrize("block", python_blocks(), ids=str)
def test_a_python_block_compiles_and_names_what_there_is(block: Block) -> None:
    api = __import__("finetune")
    assert not problems(block.code, api), f"{block}: {problems(block.code, api)}"


def test_the_check_finds_what_is_wrong() -> None:
    import finetune

    assert problems("from finetune.execute import run_recip", finetune) == ["finetune.execute has no run_recip"]
    assert problems("import finetune as ft\nft.no_such(1)", finetune) == ["there is no ft.no_such"]
    assert problems("from finetune.nowhere import x", finetune) == ["no module finetune.nowhere"]
