"""docs/preference.md against the schema and the losses."""

import re

import pytest
import yaml
from pydantic import TypeAdapter

from finetune.numerics.preference import PAIR_LOSSES, needs_reference
from finetune.recipe.learning_stages import DpoStage, PreferenceStage, RewardStage
from finetune.recipe.schema import Stage


@pytest.fixture(scope="module")
def guide(root):
    return (root / "docs" / "preference.md").read_text(encoding="utf-8")


def test_every_loss_has_its_line(guide):
    lines = [line.strip("|") for line in guide.splitlines() if line.startswith("| `")]
    cells = [[cell.strip(" `") for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    rows = {row[0]: row for row in cells}
    for name in (*PAIR_LOSSES, "kto"):
        assert rows[name][3] == ("yes" if needs_reference(name) else "no")
        assert "arxiv.org" in rows[name][4]


def test_every_key_of_its_own_is_explained(guide):
    shared = PreferenceStage.model_fields
    own = {key for stage in (RewardStage, DpoStage) for key in stage.model_fields if key not in shared}
    missing = {key for key in (own | {"ranked"}) - {"kind"} if f"`{key}`" not in guide}
    assert not missing


def test_its_stages_load(guide):
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    stages = [stage for block in blocks for stage in block["stages"].values()]
    assert {TypeAdapter(Stage).validate_python(stage).kind for stage in stages} == {"reward", "dpo"}
