"""LLaMA-Factory's dataset_info.json: names of data sets → files or hub names, format and columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.recipe.checks import DATA_EXTENSIONS
from finetune.recipe.positions import KeyPath, key_path_text

_FILE = "dataset_info.json"
_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
"""What the format sharegpt's tags are where the registry names none."""


def add_datasets(draft: Draft, theirs: Section, key: str, stage: str, to: KeyPath) -> None:
    """The sources of `dataset` or `eval_dataset`: names, separated by commas, looked up in the registry."""
    names = theirs.words(key)
    if not names:
        return
    registry, where = _registry(draft, theirs)
    limit = theirs.whole("max_samples")
    notes: list[str] = []
    for name in names:
        entry, comment, note = _source(draft, theirs, name, registry, where, stage)
        if limit is not None and key == "dataset":
            entry["take"] = limit
        draft.append(draft.of_stage(*to), entry, {next(iter(entry)): comment + (f"; {note}" if note else "")})
        notes += [f"{name}: {note}"] if note else []
    where_to = f"→ {key_path_text(draft.of_stage(*to))}"
    theirs.tell(key, Fate.DECIDE if notes else Fate.CARRIED, "; ".join([where_to, *notes]))
    theirs.tell("max_samples", Fate.CHANGED, "→ take of each source, drawn with the seed; theirs takes the first rows")
    theirs.tell("dataset_dir", Fate.CARRIED, f"→ path of the sources, by {where}" if where else "→ path of the sources")


def _registry(draft: Draft, theirs: Section) -> tuple[Mapping[str, Any], str]:
    """(its entries, the file as it is told); nothing where there is none."""
    folder = theirs.text("dataset_dir") or "data"
    if folder.upper() == "ONLINE":
        return {}, "ONLINE"
    found = draft.places.find(f"{folder}/{_FILE}")
    if found is None:
        return {}, ""
    try:
        registry = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{found}: not valid JSON: {error}") from error
    if not isinstance(registry, dict):
        raise InputError(f"{found}: should hold an object, names of data sets → descriptions")
    return registry, str(found)


def _source(
    draft: Draft, theirs: Section, name: str, registry: Mapping[str, Any], where: str, stage: str
) -> tuple[dict[str, Any], str, str]:
    """(the entry, its comment, what is to be decided)."""
    given = registry.get(name)
    if where == "ONLINE":
        return {"hub": name}, f"dataset: {name}, dataset_dir: ONLINE", ""
    if not isinstance(given, Mapping):
        folder = theirs.text("dataset_dir") or "data"
        if name.endswith(DATA_EXTENSIONS):
            found, note = draft.places.rows(name, [])[0]
            return found, f"dataset: {name}", note
        note = (
            f"not in {where}: write the file's path"
            if where
            else f"no {folder}/{_FILE} from here, which says where the rows are: write their path, or hub: and a name"
        )
        return {"path": f"{folder}/{name}.json"}, f"dataset: {name}", note
    entry, note = _place(draft, given, Path(where).parent)
    entry |= _format(given, stage)
    for theirs_key, ours in (("split", "split"), ("subset", "subset"), ("revision", "revision")):
        if isinstance(given.get(theirs_key), str) and "hub" in entry:
            entry[ours] = given[theirs_key]
    if isinstance(given.get("num_samples"), int):
        entry["take"] = given["num_samples"]
    return entry, f"dataset: {name}, as {_FILE} has it", "; ".join(filter(None, [note, _odd(given)]))


def _place(draft: Draft, given: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    if isinstance(hub := given.get("hf_hub_url"), str):
        return {"hub": hub}, ""
    file = given.get("file_name")
    if isinstance(file, str):
        path = folder / file
        written = draft.places.written(path, str(path) if folder.is_absolute() and not _near(draft, path) else file)
        return {"path": written}, "" if path.exists() else f"no file {written}"
    other = (
        given.get("ms_hub_url") or given.get("om_hub_url") or given.get("script_url") or given.get("cloud_file_name")
    )
    return {
        "path": str(other or "unknown.json")
    }, f"{other} is in a place that is not read here: give a file or hub name"


def _near(draft: Draft, path: Path) -> bool:
    """Whether a relative path to it makes sense: it lies under where we are, or beside their file."""
    roots = (draft.places.here.resolve(), *draft.places.theirs.resolve().parents[:4])
    return any(path.resolve().is_relative_to(root) for root in roots)


def _format(given: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """format and fields of a source, by `formatting`, `ranking`, `columns` and `tags` of its description."""
    found = given.get("columns")
    columns: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    if stage == "pt":
        format_, names = "text", {"text": columns.get("prompt", "text")}
    elif given.get("formatting") in ("sharegpt", "openai"):
        format_, names = _of_turns(given, columns)
    else:
        format_, names = _of_texts(given, columns)
    if "system" in columns and format_ not in ("text", "messages"):
        names["system"] = columns["system"]
    if "tools" in columns and format_ not in ("text", "alpaca"):
        names["tools"] = columns["tools"]
    fields = {ours: str(column) for ours, column in names.items() if column is not None and ours != column}
    return {"format": format_, **({"fields": fields} if fields else {})}


def _of_turns(given: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Conversations: sharegpt's turns of from and value, or messages of role and content."""
    tags = dict(_TAGS)
    if given.get("formatting") == "openai":
        tags |= {"role_tag": "role", "content_tag": "content"}
    if isinstance(own := given.get("tags"), Mapping):
        tags |= own
    conversation = columns.get("messages", "conversations")
    by_role = tags["role_tag"] == "role"
    names = {"role" if by_role else "from": tags["role_tag"], "content" if by_role else "value": tags["content_tag"]}
    if given.get("ranking"):
        names |= {key: columns.get(key, key) for key in ("chosen", "rejected")}
        names["prompt" if by_role else "conversations"] = conversation
        return ("pairs" if by_role else "sharegpt_pairs"), names
    names["messages" if by_role else "conversations"] = conversation
    if label := columns.get("kto_tag"):
        return "judged", {**names, "label": label}
    return ("messages" if by_role else "sharegpt"), names


def _of_texts(given: Mapping[str, Any], columns: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Alpaca's columns, each a text."""
    question, more = columns.get("prompt", "instruction"), columns.get("query", "input")
    if given.get("ranking"):
        names = {key: columns.get(key, key) for key in ("chosen", "rejected")}
        return "pairs", {"prompt": question, "input": more, **names}
    answer = columns.get("response", "output")
    if label := columns.get("kto_tag"):
        return "judged", {"prompt": question, "completion": answer, "label": label}
    history = columns.get("history", "history")
    return "alpaca", {"instruction": question, "input": more, "output": answer, "history": history}


def _odd(given: Mapping[str, Any]) -> str:
    """What a description says that has no place in a source."""
    columns, tags = given.get("columns"), given.get("tags")
    notes = []
    if isinstance(columns, Mapping) and (other := sorted({"images", "videos", "audios"} & set(columns))):
        notes.append(f"{', '.join(other)}: only text is trained on")
    if isinstance(columns, Mapping) and "kto_tag" in columns and "query" in columns:
        notes.append("the column query is not read with judged answers: join it to the prompt")
    if isinstance(tags, Mapping):
        known = {"user", "human", "assistant", "gpt", "system", "observation", "tool", "function_call"}
        if strange := sorted(
            str(value)
            for tag, value in tags.items()
            if tag.endswith(("user_tag", "assistant_tag")) and value not in known
        ):
            notes.append(f"roles named {', '.join(strange)} are not known here: rename them (docs/data.md)")
    if "folder" in given:
        notes.append(f"folder {given['folder']} of the data set is not chosen here")
    return "; ".join(notes)
