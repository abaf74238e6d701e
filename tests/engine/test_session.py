from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.engine.session import _check_same_base, _disk_bytes
from finetune.errors import InputError
from finetune.plan.manifest import write_manifest


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    job = SimpleNamespace(base=SimpleNamespace(digest="sha256:a", name="org/a"))
    _check_same_base(job, tmp_path)  # not a run of ours: nothing is known
    write_manifest(tmp_path, {"base": {"digest": "sha256:a", "name": "org/a"}})
    _check_same_base(job, tmp_path)
    write_manifest(tmp_path, {"base": {"digest": "sha256:b", "name": "org/b"}})
    with pytest.raises(InputError, match=r"trained on another base \(org/b\).*Start from an adapter of org/a"):
        _check_same_base(job, tmp_path)


def test_room_for_the_best_weights_is_asked_for() -> None:
    """One weight of 4 MiB, 2 checkpoints kept: 1 final + 3 x (weights, two moments), and 3 more where best is kept."""
    import torch

    from finetune.recipe.train_settings import TrainSettings

    weights = {"w": torch.nn.Parameter(torch.zeros(2**20))}
    asked = [_disk_bytes(weights, TrainSettings(keep_checkpoints=2), best) / 2**20 - 32 for best in (False, True)]
    assert asked == [4 * 10, 4 * 13]
