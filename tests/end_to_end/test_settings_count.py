"""Every field of a recipe counts: changing it changes what comes out, and a field without such a check fails here.

Most checks are one short training in this process, by the command itself; each distinct recipe is run once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import settings_of_data
import settings_of_models
import settings_of_tracking
import settings_of_training
from commands import Run
from settings_lab import Lab, lab
from settings_of_tracking import SECRET, wandb_files

from finetune.recipe import data_settings, schema, settings, train_settings

__all__ = ["lab"]

SECTIONS = (
    schema.Recipe,
    schema.ModelSettings,
    schema.AdapterSettings,
    schema.TrackSettings,
    settings.WandbSettings,
    data_settings.DataSource,
    data_settings.HeldOut,
    train_settings.TrainSettings,
    schema.SftStage,
)

CHECKS: Mapping[str, Callable[[Lab], object]] = {
    **settings_of_models.CHECKS,
    **settings_of_data.CHECKS,
    **settings_of_training.CHECKS,
    **settings_of_tracking.CHECKS,
}
OF_OTHER_SECTIONS = {
    "Recipe.model",
    "Recipe.adapter",
    "Recipe.track",
    "Recipe.stages",
    "SftStage.held_out",
    "SftStage.train",
}
"""Fields that are sections: their own fields are checked one by one."""


def test_every_field_has_a_check() -> None:
    fields = {f"{section.__name__}.{key}" for section in SECTIONS for key in section.model_fields}
    assert fields == CHECKS.keys() | OF_OTHER_SECTIONS


@pytest.mark.slow
@pytest.mark.parametrize("setting", CHECKS)
def test_the_setting_counts(setting: str, lab: Lab) -> None:
    CHECKS[setting](lab)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bits(lab: Lab) -> None:
    """What the other checks rest on: two runs that differ in nothing do not differ."""
    assert lab.run().bits == lab.run({"name": "another"}).bits


@pytest.mark.slow
def test_wandb_resumes_one_run_and_writes_no_key(lab: Lab) -> None:
    """Two sessions are two folders of one run id; the key that was in the environment is in no file of the run."""
    files = wandb_files(lab)
    sessions = {name.split("/")[1] for name in files if "/offline-run-" in f"/{name}"}
    assert len(sessions) == 2
    assert len({session.rsplit("-sft-", 1)[1] for session in sessions}) == 1
    assert [name for name, content in files.items() if SECRET.encode() in content] == []
    host = socket.gethostname().encode()
    assert [name for name, content in files.items() if len(host) > 3 and host in content] == []


@pytest.mark.slow
def test_no_key_is_written_without_wandb_either(recipe: Callable[..., Path], finetune: Run, tmp_path: Path) -> None:
    tokens = {"HF_TOKEN": "hf_" + "Abcdefgh" * 4, "WANDB_API_KEY": SECRET}
    with pytest.MonkeyPatch.context() as patch:
        for variable, token in tokens.items():
            patch.setenv(variable, token)
        ended = finetune("sft", recipe(), "--runs", tmp_path / "runs")
    assert ended.code == 0
    written = b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file())
    for token in tokens.values():
        assert token.encode() not in written and token not in ended.out + ended.err
