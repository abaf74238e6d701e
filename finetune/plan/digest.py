"""What identifies a data source: the content of its files, or the commit of a data set on the hub. No heavy library.

Planning and reading both find files through `data_files`, so a digest covers exactly what is read.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from finetune.errors import DataError
from finetune.recipe.data_settings import DataSource

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""File types that can be read; in a folder, files of other types are left alone."""

_BLOCK_BYTES = 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")


def source_label(source: DataSource) -> str:
    """What a source is called in messages and reports: its path as the recipe writes it, or `org/name[split]`."""
    if source.path is not None:
        return source.path
    if source.hub is not None:
        subset = f"{source.subset}, " if source.subset else ""
        return f"{source.hub}[{subset}{source.split}]"
    return f"stage {source.stage}"


def data_files(path: Path) -> list[Path]:
    """The files of a source in the order they are read: `path` itself, or all data files under it, sorted by path.

    Hidden files and folders are left out. Raises DataError when there is nothing to read.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"files of type '{path.suffix}' are not read; known are {', '.join(SUFFIXES)}", path=path)
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file or folder{_near_name(path)}", path=path)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(f"the folder has no data file ({', '.join(SUFFIXES)})", path=path)
    return files


def source_digest(source: DataSource, locate: Callable[[str], Path]) -> str:
    """`sha256:…` over the content of a source's files, or `hub:org/name@commit` with subset and split.

    One file gives the plain sha256 of its bytes; a folder the sha256 over names and content of its files. The rows of
    a stage are known by that stage's own fingerprint, which the plan adds: here they give `stage:name`. locate: makes
    a recipe's path absolute. Raises DataError.
    """
    if source.stage is not None:
        return f"stage:{source.stage}"
    if source.hub is not None:
        if (folder := local_hub_folder(source.hub, locate)) is None:
            part = f"[{source.subset or 'default'}, {source.split}]"
            return f"hub:{source.hub}@{hub_commit(source.hub, source.revision)}{part}"
        # The `datasets` library decides what it reads there, a README's settings among it: all files count.
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return _digest_of_many(files, folder)
    assert source.path is not None  # the schema: exactly one of path, hub, stage
    path = locate(source.path)
    files = data_files(path)
    return f"sha256:{_sha256(path)}" if path.is_file() else _digest_of_many(files, path)


def local_hub_folder(hub: str, locate: Callable[[str], Path]) -> Path | None:
    """The folder a `hub` value means when it is written as a path (./x, ../x, /x, ~/x); None for org/name."""
    if not hub.startswith((".", "/", "~")):
        return None
    folder = locate(hub)
    if not folder.is_dir():
        raise DataError("no such folder, and not a data set's name on the hub (org/name)", path=folder)
    return folder


def hub_commit(hub: str, revision: str | None) -> str:
    """The commit that a data set's revision stands for; without a network, the one in the local cache.

    Raises DataError.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # No file has this name: nothing is downloaded, only the commit is asked for.
        folder = snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=["\0"])
    except HFValidationError as error:
        raise DataError(
            f"'{hub}' is not the name of a data set on the hub (org/name); a file goes under path"
        ) from error
    except GatedRepoError as error:
        raise DataError(
            f"{hub} is gated: accept its terms on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{hub}: no such data set on the hub, or it is private and you are not logged in (`hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(f"{hub} has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise DataError(
            f"{hub} is not in the local cache and the hub could not be reached ({type(error).__name__}): check the "
            "network, give revision as a full commit, or download the files and name them under path"
        ) from error
    return Path(folder).name


def _near_name(path: Path) -> str:
    if not path.parent.is_dir():
        return f": {path.parent} is not a folder"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _digest_of_many(files: list[Path], folder: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()}\0{_sha256(file)}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error
    return digest.hexdigest()
