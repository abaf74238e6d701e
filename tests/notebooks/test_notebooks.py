"""The notebooks: stored bare, run from the first cell to the last, and small enough for a free GPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from browser import SCREENSHOTS, browser, needs_chromium
from nbclient.exceptions import CellExecutionError
from page_checks import problems

import finetune as ft
from finetune.reports.page import recipe_page
from finetune.reports.read import read_run

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("sft", "reward", "reject", "ppo", "dpo")
NAMES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
GPU_GIB = 15.0
"""Of the 16 GB of a free GPU, what is left beside CUDA itself."""
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
    "vocab_size": 128256, "tie_word_embeddings": True, "max_position_embeddings": 131072, "rope_theta": 500000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """notebooks.py of the scripts folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("notebooks")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_all_six_are_there(tool: ModuleType) -> None:
    assert [path.name for path in tool.notebooks()] == NAMES
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_stored_bare(name: str, tool: ModuleType) -> None:
    path = ROOT / "notebooks" / name
    notebook = tool.read(path)
    bare = all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert bare, f"{name} has outputs: python scripts/notebooks.py strip"
    assert path.read_text(encoding="utf-8") == tool.text_of(tool.stripped(notebook)), "scripts/notebooks.py strip"


@pytest.mark.parametrize("name", NAMES)
def test_one_line_names_the_model(name: str, tool: ModuleType) -> None:
    notebook = tool.read(ROOT / "notebooks" / name)
    first, *others = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    lines = first.splitlines()
    assert lines[0].startswith('MODEL = "../models/quickstart"') and "meta-llama/Llama-3.2-1B" in lines[0]
    assert len(lines) == 2 and lines[1].startswith('RUNS = "../runs"')
    for source in others:
        assert not re.search(r"(?m)^(MODEL|RUNS) =", source)
        assert "models/quickstart" not in re.sub(r'(?m)^TINY = MODEL == "../models/quickstart"$', "", source)


def test_settings_take_the_lines_place(tool: ModuleType) -> None:
    notebook = tool.read(ROOT / "notebooks" / NAMES[0])
    changed = tool.settled(notebook, MODEL="org/other", RUNS="elsewhere")
    first = next(cell.source for cell in changed.cells if cell.cell_type == "code")
    assert "MODEL = 'org/other'" in first and "RUNS = 'elsewhere'" in first
    assert [cell.source for cell in notebook.cells] != [cell.source for cell in changed.cells]
    with pytest.raises(ValueError, match="NOTHING"):
        tool.settled(notebook, NOTHING="x")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str, tool: ModuleType) -> None:
    notebook = tool.read(ROOT / "notebooks" / name)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets, "not a link: where should one read on?"
    for target in targets:
        if not re.match(r"https://[\w.-]+\.\w+", target):
            assert (ROOT / "notebooks" / target.partition("#")[0]).exists(), f"{target} leads nowhere"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Llama 3.2 1B's sizes, some tokenizer, and no weights worth the name: enough to plan with."""
    folder = tmp_path_factory.mktemp("llama")
    shutil.copytree(ROOT / "models" / "quickstart", folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_3_2_1B))
    return folder


def recipes_of(tool: ModuleType, name: str, model: Path | None, runs: Path) -> list[ft.Recipe]:
    """The recipes that a notebook has made where it first trains: its cells up to there, run in this process."""
    settings = {"RUNS": str(runs)} | ({"MODEL": str(model)} if model else {})
    notebook = tool.settled(tool.read(ROOT / "notebooks" / name), **settings)
    space: dict[str, Any] = {"display": lambda *what: None}
    before = os.getcwd()
    os.chdir(ROOT / "notebooks")
    try:
        for cell in notebook.cells:
            if cell.cell_type == "code":
                if "ft.run(" in cell.source:
                    break
                exec(compile(cell.source, f"{name} {cell.id}", "exec"), space)
    finally:
        os.chdir(before)
    return [value for value in space.values() if isinstance(value, ft.Recipe)]


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_on_a_free_gpu(name: str, tool: ModuleType, large: Path, tmp_path: Path) -> None:
    """Also where there is no bf16, as on a T4, and matrix products are in float32."""
    recipes = recipes_of(tool, name, large, tmp_path)
    assert recipes, "no recipe before the first ft.run"
    for recipe in recipes:
        for compute in ("auto", "fp32"):
            plan = recipe.set(f"model.compute={compute}").plan(tmp_path)
            assert plan.made.recipe.model.load_in == "nf4"
            for row in plan.rows:
                assert row["memory_gib"] < GPU_GIB, f"stage {row['stage']} in {compute}: {row['memory_gib']:.1f} GiB"


def test_stages_of_one_name_are_one_run(tool: ModuleType, tmp_path: Path) -> None:
    """So what one notebook has trained the next one finds."""
    found: dict[str, set[Path]] = {}
    for name in NAMES:
        for recipe in recipes_of(tool, name, None, tmp_path):
            if recipe.name == "notebooks":
                for row in recipe.plan(tmp_path).rows:
                    found.setdefault(row["stage"], set()).add(row["folder"])
    assert {"sft", "helpful"} <= set(found)
    assert all(len(folders) == 1 for folders in found.values()), found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, tool: ModuleType, runs: Path) -> None:
    notebook = tool.settled(tool.read(ROOT / "notebooks" / name), RUNS=str(runs))
    failed = None
    try:
        tool.execute(notebook, HF_HUB_OFFLINE="1")
    except CellExecutionError as error:
        failed = tool.told(error)
    if failed:
        pytest.fail(f"{name}: {failed}", pytrace=False)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not errors, f"{name} wrote to stderr, which is shown in red:\n{errors}"
    assert len(tool.text_of(notebook)) < 2_000_000, "a live display should leave one picture, not all of them"


@pytest.mark.slow
@needs_chromium
def test_the_report_of_what_they_trained(runs: Path, tmp_path: Path) -> None:
    """Of a chain that really ran: small enough to send, and nothing broken on a phone or a desktop."""
    manifests = [path for path in sorted(runs.rglob("manifest.json")) if not path.parent.name.endswith(".part")]
    by_stage = {run.stage: run for run in (read_run(path.parent) for path in manifests) if run.kind in KINDS}
    finished = list(by_stage.values())
    if not finished:
        pytest.skip("looks at what the notebooks have trained: run the whole file")
    assert {run.kind for run in finished} == set(KINDS)
    page = tmp_path / "report.html"
    page.write_text(recipe_page("notebooks", finished, {}), encoding="utf-8")
    assert page.stat().st_size < 3_000_000
    with browser() as chromium:
        shown = chromium.open(page.as_uri())
        for width, dark in ((390, True), (1280, False)):
            shown.look(width=width, dark=dark)
            assert problems(shown) == [], (width, dark)
            shown.screenshot(SCREENSHOTS / f"report-notebooks-{width}.png")
        assert shown.requests == [shown.url]
        shown.close()
