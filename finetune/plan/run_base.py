"""The base of a finished run, found again: where its manifest says, or where the user says, and surely the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune.errors import BaseModelError
from finetune.plan.base_files import BaseFiles, locate_base, read_json
from finetune.recipe.settings import ModelSettings


def find_base(
    folder: Path, manifest: Mapping[str, Any], base: str | None, say: Callable[[str], None]
) -> tuple[ModelSettings, BaseFiles]:
    """The run's model settings, and the base they speak of or the given one. Raises BaseModelError where it differs."""
    recorded = manifest["base"]
    revision = recorded["revision"]
    if base is None:
        base = recorded["name"]
        if revision is None:
            # The recipe's own words may be relative to a recipe that is not here; peft's file has the whole path.
            base = (read_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path") or base
            if not Path(base).is_dir():
                raise BaseModelError(f"the base of {folder} was in {base} and is not there: say where with --base")
    if Path(base).is_dir():
        revision = None
    model = ModelSettings.model_validate({**manifest["recipe"]["model"], "base": base, "revision": revision})
    files = locate_base(model, Path(), weights=True)
    if files.digest.split(":")[0] != recorded["digest"].split(":")[0]:
        say(f"base: {files.folder} is taken for {recorded['name']} at {recorded['revision']}: that cannot be checked")
    elif files.digest != recorded["digest"]:
        raise BaseModelError(
            f"{files.folder} is not the base that {folder} was trained on: its files differ from those the manifest "
            "records. Give the right one with --base"
        )
    return model, files
