"""Where a base is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import BaseModelError
from finetune.plan.base_files import locate_base
from finetune.recipe.settings import ModelSettings


def test_a_name_that_could_be_a_folder_is_told_as_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models/quickstart` from another folder is taken for a hub id; the message says where no folder is."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="could not be reached") as told:
        locate_base(ModelSettings(base="models/quickstart"), tmp_path, weights=False)
    assert f"and there is no folder {tmp_path / 'models/quickstart'} either" in str(told.value)
