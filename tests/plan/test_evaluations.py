"""What is kept beside a run: whole files, named by what was measured, read back as they were."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from finetune.errors import InputError
from finetune.plan.evaluations import FOLDER, Evaluation, keep_evaluation, read_evaluations

LOSS = Evaluation(
    "loss",
    {"name": "a.jsonl", "digest": "sha256:1", "rows": 2},
    {"limit": None},
    {"loss": {"value": 1.0, "low": 0.9, "high": 1.1}},
    [{"row": 0, "loss": 1.0}],
    made="2026-01-02T00:00:00+00:00",
)


def test_kept_and_read(tmp_path):
    assert read_evaluations(tmp_path) == []
    older = replace(LOSS, settings={"limit": 1}, made="2026-01-01T00:00:00+00:00")
    path = keep_evaluation(tmp_path, LOSS)
    keep_evaluation(tmp_path, older)
    assert path.parent.name == FOLDER and path.name.startswith("loss-")
    assert read_evaluations(tmp_path) == [older, LOSS]


def test_a_damaged_file_does_not_hide_the_others(tmp_path):
    keep_evaluation(tmp_path, LOSS)
    (tmp_path / FOLDER / "a-damaged.json").write_text("{")
    with pytest.raises(InputError, match="is not an evaluation"):
        read_evaluations(tmp_path)
    told = []
    assert read_evaluations(tmp_path, told.append) == [LOSS] and len(told) == 1


def test_the_same_measurement_replaces_and_another_does_not(tmp_path):
    keep_evaluation(tmp_path, LOSS)
    again = replace(LOSS, results={"loss": {"value": 2.0, "low": 1.0, "high": 3.0}}, seconds=3.0)
    keep_evaluation(tmp_path, again)
    assert read_evaluations(tmp_path) == [again]
    for other in (
        replace(LOSS, task="score"),
        replace(LOSS, data={**LOSS.data, "digest": "sha256:2"}),
        replace(LOSS, settings={"limit": 5}),
        replace(LOSS, against={"name": "base", "fingerprint": "base"}),
    ):
        assert other.file_name != LOSS.file_name
        keep_evaluation(tmp_path, other)
    assert len(read_evaluations(tmp_path)) == 5


def test_unfinished_work_is_no_evaluation_and_damage_is_told(tmp_path):
    path = keep_evaluation(tmp_path, LOSS)
    (path.parent / "win_rate-1.part").mkdir()
    (path.parent / "loss-2.json.part").write_text("{")
    assert len(read_evaluations(tmp_path)) == 1
    whole = json.loads(path.read_text())
    for content in ("{", "[]", json.dumps({**whole, "format": 9}), json.dumps({**whole, "more": 1}), "{}"):
        path.write_text(content)
        with pytest.raises(InputError, match=path.name):
            read_evaluations(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"results": None}, {"rows": "abc"}, {"rows": ["x"]}, {"made": 5}, {"settings": []}, {"against": "base"}],
)
def test_values_of_other_kinds_are_told(tmp_path, changed):
    """JSON all right, and yet nothing that a report could show."""
    path = keep_evaluation(tmp_path, LOSS)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(InputError, match="not an evaluation"):
        read_evaluations(tmp_path)
