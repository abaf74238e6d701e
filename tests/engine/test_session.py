from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.engine.session import _check_same_base
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


def test_wandb_mode_of_the_environment_only_ever_sends_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.engine.tracking import Wandb
    from finetune.recipe.settings import WandbSettings

    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = Wandb(WandbSettings(project="p", mode="online"), name="n", config={}, folder=tmp_path, run_id="x")
    run.log({"step": 1, "loss": 1.0})
    run.close()
    assert not list(tmp_path.rglob("*.wandb"))
