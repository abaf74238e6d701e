"""A release on the Hugging Face Hub: what is there already, what would change, and the one commit that changes it.

The calls are huggingface_hub's own: it finds the token (`hf auth login` or HF_TOKEN), sends large files first, one by
one, and then makes a single commit. Until that commit nothing of the release can be seen; a large file that went up
before a connection broke is not sent again by the next attempt.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, InputError
from finetune.plan.manifest import FILE
from finetune.release.bundle import CARD, Bundle, blob_id

_ALWAYS_THERE = ".gitattributes"
"""Written by the hub itself into every repository."""
_FULL = ("storage", "quota", "limit reached", "payment")
"""Words of the hub's refusals for lack of space; it sends them with 403, like those for lack of rights."""


@dataclass(frozen=True)
class There:
    """A repository as it stands. files: path -> sha256 of a large file, git's blob id of another.

    head: its last commit, None where there is no repository. earlier: the manifest of an earlier release there.
    """

    head: str | None
    is_private: bool
    files: Mapping[str, str]
    earlier: Mapping[str, Any] | None


@dataclass(frozen=True)
class Change:
    """new, changed, same: files of the release. gone: of an earlier release, not of this one. others: not ours.

    edited: files of the release that somebody changed on the hub since, and that stay as they are: the card.
    """

    new: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    gone: tuple[str, ...]
    others: tuple[str, ...]
    edited: tuple[str, ...]

    @property
    def is_none(self) -> bool:
        return not (self.new or self.changed or self.gone)


def open_hub() -> tuple[Any, str]:
    """The library's client, and the account that it is logged in as. Raises InputError without a valid token."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="finetune")
    with told("you"):
        return api, str(api.whoami()["name"])


def look(api: Any, bundle: Bundle) -> There:
    """The repository of a release as it stands now."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    name, kind = bundle.name, bundle.repo_type
    with told(name):
        try:
            info = api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:
                raise
            return There(None, True, {}, None)
        entries = api.list_repo_tree(name, repo_type=kind, recursive=True, revision=info.sha)
        files = {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if isinstance(e, RepoFile)}
        earlier = None
        if FILE in files:
            with tempfile.TemporaryDirectory() as folder:
                path = api.hf_hub_download(name, FILE, repo_type=kind, revision=info.sha, local_dir=folder)
                earlier = _object(Path(path).read_text(encoding="utf-8"))
        return There(info.sha, bool(info.private), files, earlier)


def compare(bundle: Bundle, there: There) -> Change:
    """What publishing would change. Files that an earlier release brought and this one does not have are removed."""
    states: dict[str, list[str]] = {"new": [], "changed": [], "same": [], "edited": []}
    written = (there.earlier or {}).get("card")
    for file, content in bundle.files.items():
        if file not in there.files:
            states["new"].append(file)
        else:
            is_same = there.files[file] in (bundle.sha256[file], blob_id(content))
            is_edited = file == CARD and written not in (None, there.files[file])
            states["same" if is_same else "edited" if is_edited else "changed"].append(file)
    brought = set((there.earlier or {}).get("files") or ())
    rest = [file for file in there.files if file not in bundle.files and file != _ALWAYS_THERE]
    return Change(
        tuple(states["new"]),
        tuple(states["changed"]),
        tuple(states["same"]),
        tuple(file for file in rest if file in brought),
        tuple(file for file in rest if file not in brought),
        tuple(states["edited"]),
    )


def upload(api: Any, bundle: Bundle, there: There, change: Change, *, public: bool) -> str:
    """Make the repository where there is none, and one commit. Returns the commit's address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with told(bundle.name, uploading=True):
        if there.head is None:
            api.create_repo(bundle.name, repo_type=bundle.repo_type, private=not public, exist_ok=True)
        operations: list[Any] = []
        for file in (*change.new, *change.changed):
            content = bundle.files[file]
            operations.append(CommitOperationAdd(file, content if isinstance(content, bytes) else str(content)))
        operations += [CommitOperationDelete(file) for file in change.gone]
        commit = api.create_commit(
            bundle.name,
            operations,
            repo_type=bundle.repo_type,
            commit_message="Published with finetune",
            parent_commit=there.head,
        )
    return str(commit.commit_url)


def collect(api: Any, title: str, owner: str, bundles: list[Bundle], *, public: bool) -> str:
    """Put releases into a collection of `owner`, which is made where there is none. Returns its address."""
    with told(f"the collection {title}"):
        collection = api.create_collection(title, namespace=owner, private=not public, exists_ok=True)
        for bundle in bundles:
            api.add_collection_item(collection.slug, bundle.name, bundle.repo_type, exists_ok=True)
    return str(collection.url)


@contextmanager
def told(name: str, *, uploading: bool = False) -> Iterator[None]:
    """The hub's errors as messages that say what to do. name: what was being worked on."""
    from httpx2 import TransportError
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise InputError(
            "you are not logged in to the hub: `hf auth login`, or set HF_TOKEN in the environment, with a token that "
            "may write"
        ) from error
    except OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set, and publishing needs the hub; --dry-run DIR does not") from error
    except HFValidationError as error:
        raise InputError(f"the hub takes no such name: {name} ({error})") from error
    except HfHubHTTPError as error:
        raise _refused(error, name, uploading) from error
    except (TransportError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise FinetuneError(_lost(name, uploading, str(error))) from error
    except RuntimeError as error:  # what went wrong with one large file, the library says so
        if not uploading:
            raise
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise _refused(cause, name, uploading) from error
        raise FinetuneError(
            _lost(name, uploading, f"{error}: {cause}" if cause is not error else str(error))
        ) from error


def _refused(error: Any, name: str, uploading: bool) -> FinetuneError:
    status = error.response.status_code
    said = (error.server_message or error.response.headers.get("X-Error-Message") or "").strip()
    reason = f" ({said})" if said else ""
    if status == 401:
        return InputError(
            f"the hub does not take your token{reason}: make one that may write at its settings page, then "
            "`hf auth login`, or set HF_TOKEN"
        )
    if status in (402, 413, 507) or (status == 403 and any(word in said.lower() for word in _FULL)):
        return FinetuneError(
            f"the hub has no room for {name}{reason}: delete what is not needed there or extend the account, and run "
            "the same command again"
        )
    if status == 403:
        return InputError(
            f"you may not write to {name}{reason}: the name belongs to somebody else, or the token may only read. Give "
            "--to a name of your own or of an organisation that you write for"
        )
    if status == 404:
        return InputError(f"the hub knows no {name}{reason}: is the user or organisation spelt right?")
    if status in (409, 412):
        return FinetuneError(f"{name} has changed meanwhile{reason}: run the same command again")
    if status == 400:
        return InputError(f"the hub refuses {name} as it is{reason or f' ({error})'}")
    return FinetuneError(_lost(name, uploading, f"the hub answered {status}{reason}"))


def _lost(name: str, uploading: bool, reason: str) -> str:
    if uploading:
        return (
            f"the connection was lost while {name} went up ({reason}). Nothing of it can be seen yet; the same command "
            "goes on, and sends no large file twice"
        )
    return f"the hub could not be reached ({reason}): check the network. Nothing was uploaded; --dry-run DIR needs none"


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
