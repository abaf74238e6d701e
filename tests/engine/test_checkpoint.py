import random

import numpy as np
import pytest
import torch

from finetune.engine.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    random_state,
    restore_random_state,
    write_checkpoint,
)


def make(step):
    return Checkpoint(
        step, {"w": torch.full((3,), float(step))}, {"state": {}, "param_groups": []}, random_state(), {"x": step}
    )


def test_the_newest_is_read_and_old_ones_go(tmp_path):
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, make(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    found, warnings = newest_checkpoint(tmp_path)
    assert found.step == 6 and found.weights["w"].tolist() == [6.0] * 3 and found.state == {"x": 6} and warnings == []


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "rng.pt", "state.json", "files.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_one_is_passed_over_aloud(tmp_path, name, damage):
    for step in (2, 4):
        write_checkpoint(tmp_path, make(step), keep=2)
    path = tmp_path / "step-00000004" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-3] + bytes(byte ^ 1 for byte in content[-3:]))
    found, warnings = newest_checkpoint(tmp_path)
    assert found.step == 2 and len(warnings) == 1 and "step-00000004 is damaged" in warnings[0]


def test_a_half_written_one_is_never_seen(tmp_path):
    write_checkpoint(tmp_path, make(2), keep=2)
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000004.part")
    assert newest_checkpoint(tmp_path) == (None, [])
    write_checkpoint(tmp_path, make(4), keep=2)  # clears what the crash left
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_random_state_comes_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.random(), np.random.randn(), torch.rand(1)
    state = random_state()
    first = (random.random(), np.random.randn(), torch.rand(1).item())
    restore_random_state(state)
    assert (random.random(), np.random.randn(), torch.rand(1).item()) == first
