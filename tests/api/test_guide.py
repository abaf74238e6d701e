"""docs/api.md, run: every block of Python in it, on a recipe of the stages that it speaks of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from api_chain import Chain

import finetune as ft

GUIDE = Path(ft.__file__).parent.parent / "docs" / "api.md"
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
RUN = [block for block in BLOCKS if "ft.publish" not in block]  # test_releasing.py has these, with a hub of its own


def test_the_guide_has_blocks() -> None:
    assert len(RUN) == len(BLOCKS) - 1 >= 8


@pytest.mark.parametrize("number", range(len(RUN)))
def test_a_block_runs(number: int, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chain.recipe.folder, tmp_path, dirs_exist_ok=True)
    shutil.copyfile("questions.jsonl", "held_out.jsonl")
    ft.Recipe.from_dict(chain.recipe.to_dict()).save("recipe.yaml", overwrite=True)
    recipe = ft.Recipe.load("recipe.yaml")
    names = {"ft": ft, "recipe": recipe, "results": ft.run(recipe)}
    exec(compile(RUN[number], f"docs/api.md, block {number + 1}", "exec"), names)
