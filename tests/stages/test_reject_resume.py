"""A reject stage that is stopped or killed goes on with the next chunk, and ends in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
from engine.test_kill9 import Nursery
from reject_lab import reject_lab, reject_stage

from finetune.engine.sampling_journal import FILE, Journal
from finetune.engine.tracking import MetricsFile
from finetune.errors import InterruptedRunError

__all__ = ["reject_lab"]

STAGE = {
    "samples": 8,
    "rows_at_once": 16,
    "unfinished": "keep",
    "temperature_search": {"candidates": [0.7, 1.3], "prompts": 3},
}
"""5 lines in the journal: 2 candidates, 3 chunks of 8 prompts."""


def result(folder):
    """All that a stage writes, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "memory_gib")
    metrics = [{key: value for key, value in line.items() if key not in timed} for line in lines]
    assert not (folder / "work").exists() and (folder / "manifest.json").is_file()
    return metrics, *((folder / name).read_bytes() for name in ("samples.jsonl", "rows.jsonl", "best_of.svg"))


def finished(lab):
    run = lab.reject(**STAGE)
    return result(run.folders["best"]), run


@pytest.fixture(scope="module")
def whole(reject_lab):
    """The result of a run that nobody stopped."""
    found, run = finished(reject_lab)
    shutil.rmtree(run.folders["best"])
    assert [line["step"] for line in found[0]] == [1, 2, 3, 4, 5]
    return found


@pytest.fixture(autouse=True)
def from_nothing(reject_lab):
    for path in (reject_lab.folder / "runs" / "lab").glob("best-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("step", [1, 2, 4])
def test_sigterm_ends_at_a_chunk(reject_lab, whole, monkeypatch, step):
    write = MetricsFile.write

    def stopped(self, metrics):
        write(self, metrics)
        if metrics["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "write", stopped)
        with pytest.raises(InterruptedRunError, match=f"after chunk {step} of 5, which is saved"):
            reject_lab.reject(**STAGE)
    found, run = finished(reject_lab)
    assert found == whole
    assert f"best: goes on after {step} of 5 chunks that are sampled already" in run.said


@pytest.mark.parametrize("before", [True, False])
def test_a_crash_between_metrics_and_journal_loses_one_chunk(reject_lab, whole, monkeypatch, before):
    append = Journal.append

    def crash(self, chunk):
        if self.done == 3:
            if not before:
                append(self, chunk)
            raise RuntimeError("crash")
        append(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", crash)
        with pytest.raises(RuntimeError, match="crash"):
            reject_lab.reject(**STAGE)
    (part,) = (reject_lab.folder / "runs" / "lab").glob("best-*.part")
    with (part / "work" / FILE).open("ab") as file:
        file.write(b'{"tokens": 12, "entr')  # a line that a kill cut short
    found, run = finished(reject_lab)
    assert found == whole
    assert any(f"goes on after {3 if before else 4} of 5 chunks" in line for line in run.said)


@pytest.mark.slow
def test_killed_inside_its_saves(reject_lab, whole):
    """SIGKILL at every call that makes work durable, one after another, until a run gets through."""
    nursery = Nursery(reject_lab.folder / "log.txt")
    recipe = reject_lab.recipe({"best": reject_stage(**STAGE)})
    kills = 0
    try:
        for call in (1, 2, 3, 4, 2, 3, 1, 2, 5, 9, 14, None):
            argv = ["run", recipe, "--runs", reject_lab.folder / "runs"]
            status = nursery.run(argv, kill_at=call)
            kills += status == -9
            if status == 0:
                break
            assert status == -9, nursery.log.read_text()
    finally:
        nursery.close()
    assert kills >= 6
    (folder,) = [path for path in (reject_lab.folder / "runs" / "lab").glob("best-*") if path.suffix == ""]
    assert result(folder) == whole
