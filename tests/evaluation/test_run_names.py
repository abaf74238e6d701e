"""What a run is called in the rows of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.evaluation.answers import ROW_FIELDS, run_name


def test_a_run_is_called_by_its_stage() -> None:
    assert run_name(Path("runs/chat/sft-0123456789ab"), {"stage": "sft"}) == "sft"


@pytest.mark.parametrize("stage", sorted(ROW_FIELDS))
def test_a_stage_named_like_a_field_of_the_rows_does_not_overwrite_it(stage: str) -> None:
    name = run_name(Path(f"runs/chat/{stage}-0123456789ab"), {"stage": stage})
    assert name == f"{stage}-0123456789ab"
