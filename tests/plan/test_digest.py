"""Digests of data sources: by content, the same wherever the files lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from finetune.errors import DataError
from finetune.plan.digest import data_files, hub_commit, source_digest, source_label
from finetune.recipe.data_settings import DataSource


def test_one_file_gives_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n')
    digest = source_digest(DataSource(path="a.jsonl"), lambda path: tmp_path / path)
    assert digest == "sha256:" + hashlib.sha256(b'{"text": "a"}\n').hexdigest()


@pytest.mark.parametrize("key", ["path", "hub"])
def test_a_folder_changes_with_content_and_names_of_its_files(tmp_path: Path, key: str) -> None:
    def digest(folder: str) -> str:
        value = f"./{folder}"
        source = DataSource(path=value) if key == "path" else DataSource(hub=value)
        return source_digest(source, lambda path: tmp_path / path)

    for folder, name, content in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "1"), ("d", "x", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.jsonl").write_text(content)
    assert digest("a") == digest("b")
    assert len({digest(folder) for folder in "acd"}) == 3


def test_stages_and_commits() -> None:
    assert source_digest(DataSource(stage="best"), Path) == "stage:best"
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert hub_commit("org/name", commit) == commit
    source = DataSource(hub="org/name", revision=commit, subset="small")
    assert source_digest(source, Path) == f"hub:org/name@{commit}[small, train]"
    assert source_label(source) == "org/name[small, train]"


def test_without_a_network_a_hub_data_set_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="not in the local cache and the hub could not be reached"):
        hub_commit("org/never-downloaded", None)
    with pytest.raises(DataError, match="not the name of a data set"):
        hub_commit("a/b/c", None)


def test_missing_files_offer_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "demo.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"dmeo\.jsonl: no such file or folder \(did you mean demo\.jsonl\?\)"):
        data_files(tmp_path / "dmeo.jsonl")
    with pytest.raises(DataError, match="is not a folder"):
        data_files(tmp_path / "nowhere" / "demo.jsonl")
