"""Axolotl's datasets: `type` says the format, and for some the text that is written round it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune.migrate import model
from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.rows import add_source
from finetune.recipe.positions import KeyPath

_ALPACA = re.compile(r"(alpaca|alpaca_w_system|alpaca_instruct|alpaca_chat)(\.\w+)?$")
_PREFERENCES: Mapping[str, dict[str, str]] = {
    "intel": {"prompt": "question"},
    "icr": {"prompt": "input"},
    "argilla": {"prompt": "instruction"},
    "argilla_chat": {},
    "ultra": {},
    "prompt_pairs": {},
    "default": {},
}
"""The second half of llama3.intel and its like → the names of its columns that differ from ours."""
_OWN_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "sft": {"field_instruction": "instruction", "field_input": "input", "field_output": "output"},
    "dpo": {"field_prompt": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"},
    "kto": {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"},
}
"""What a type of their own calls its columns → ours, by what the stage reads."""
_OWN_ROLES = {"user": {"human", "user"}, "assistant": {"gpt", "assistant"}, "system": {"system"}, "tool": {"tool"}}


def template_of(draft: Draft, theirs: Section, kind: str) -> None:
    """model.template. `type: alpaca` writes Alpaca's text whatever chat_template says; both in one file cannot be."""
    types = [str(dataset.raw("type")) for dataset in theirs.sections("datasets")]
    if kind == "sft" and any(_ALPACA.match(kind_of) for kind_of in types):
        draft.put(("model", "template"), "alpaca", "type: alpaca writes rows as Stanford Alpaca does")
        others = sorted({kind_of for kind_of in types if not _ALPACA.match(kind_of) and kind_of != "completion"})
        if others or "chat_template" in theirs:
            note = "rows of type alpaca and chat_template are written in two formats there; here all are Alpaca's"
            theirs.decide("chat_template", note)
            draft.account.decide(f"model.template: {note}")
        return
    formats = {kind_of.partition(".")[0] for kind_of in types if "." in kind_of}
    if kind != "sft" and "chat_template" not in theirs and formats & {"llama3", "chatml", "zephyr"}:
        if formats == {"llama3"}:
            draft.put(("model", "template"), "llama3", "type: llama3.… writes rows as Llama 3 does")
            return
        draft.account.decide(f"model.template: there is no {', '.join(sorted(formats))} here; auto is the base's own")
    model.template(draft, theirs, "chat_template", "the template of the base, as its tokenizer carries it")


def add_dataset(draft: Draft, dataset: Section, kind: str, to: KeyPath, plain: bool = False) -> None:
    """One entry of datasets. plain: of pretraining_dataset, raw text."""
    given = dataset.text("path")
    if given is None:
        dataset.account.problem(dataset.at("path"), "missing key: path")
        return
    extra, note = _format(dataset, kind, plain)
    for key, ours in (("name", "subset"), ("split", "split"), ("revision", "revision")):
        if value := dataset.text(key):
            extra[ours] = value
            dataset.tell(key, Fate.CARRIED, f"→ {ours} of the source")
    files = dataset.words("data_files")
    if not files and dataset.text("ds_type") and given.lower() in ("json", "csv", "parquet", "text"):
        dataset.account.problem(dataset.at("data_files"), f"path: {given} needs data_files")
    add_source(draft, dataset, "path", given, files, extra, to)
    dataset.tell("data_files", Fate.CARRIED, "→ path of the source")
    if note:
        dataset.decide("type", note)
    else:
        dataset.tell("type", Fate.CARRIED, f"→ format {extra.get('format', 'auto')}")
    _trained_turns(dataset)


def _format(dataset: Section, kind: str, plain: bool) -> tuple[dict[str, Any], str]:
    """(format and fields of the source, what is to be decided about it)."""
    given = dataset.raw("type")
    if isinstance(given, Mapping):
        return _user_defined(dataset, kind)
    name = str(given or "")
    if plain or name in ("completion", "pretrain"):
        return _named({"text": _told(dataset, "text_column") or _told(dataset, "field") or "text"}, "text"), ""
    if kind == "kto":
        last = name.rpartition(".")[2]
        if last == "argilla_chat":  # the whole conversation
            return _named({"messages": "completion"}, "judged"), ""
        columns = _PREFERENCES.get(last, {})
        return _named({"prompt": "prompt", **columns}, "judged"), ""
    if kind in ("dpo", "reward"):
        return _comparison(dataset, name)
    if _ALPACA.match(name):
        return {"format": "alpaca"}, ""
    if name.startswith("sharegpt"):
        return _named({"conversations": _told(dataset, "field_messages") or "conversations"}, "sharegpt"), ""
    if name.startswith(("chat_template", "llama2_chat", "chat")) or not name:
        return _turns(dataset)
    note = (
        f"there is no type {name} here: see docs/data.md for a format and fields that fit; auto tells them by the rows"
    )
    return {}, note


def _turns(dataset: Section) -> tuple[dict[str, Any], str]:
    """type chat_template: which key holds the turns, and which of a turn its role and its text."""
    mapped = dataset.section("message_property_mappings")
    role = mapped.text("role") or _told(dataset, "message_field_role") or "role"
    content = mapped.text("content") or _told(dataset, "message_field_content") or "content"
    dataset.tell("message_property_mappings", Fate.CARRIED, "→ format and fields of the source")
    column = _told(dataset, "field_messages") or "messages"
    if (role, content) == ("from", "value"):
        return _named({"conversations": column}, "sharegpt"), ""
    return _named({"messages": column, "role": role, "content": content}, "messages"), ""


def _comparison(dataset: Section, name: str) -> tuple[dict[str, Any], str]:
    last = name.rpartition(".")[2]
    if name.startswith("bradley_terry"):
        return _named({"prompt": "input"}, "pairs"), ""
    if name.startswith("chat_template"):
        names = {
            ours: _told(dataset, key) or ours
            for ours, key in (("chosen", "field_chosen"), ("rejected", "field_rejected"))
        }
        dataset.tell("message_property_mappings", Fate.CARRIED, "→ the turns of format pairs, role and content")
        if last == "argilla_chat":
            return _named(names, "pairs"), ""
        return _named({"prompt": _told(dataset, "field_messages") or "messages", **names}, "pairs"), ""
    if last in _PREFERENCES:
        return _named(dict(_PREFERENCES[last]), "pairs"), ""
    return {}, f"there is no type {name} here: docs/data.md has the formats of comparisons; auto tells them by the rows"


def _user_defined(dataset: Section, kind: str) -> tuple[dict[str, Any], str]:
    """A type of their own: columns are carried over, the text round them is not."""
    own = dataset.section("type")
    ours = _OWN_COLUMNS["dpo" if kind == "reward" else kind]
    formats = {"sft": "alpaca", "kto": "judged"}
    fields = {name: own.text(key) for key, name in {**ours, "field_system": "system"}.items()}
    named = {name: column for name, column in fields.items() if column is not None}
    note = "its columns are in fields; the text that it writes round them is not: model.template does that here"
    return _named(named, formats.get(kind, "pairs")), note


def _named(columns: Mapping[str, str], format_: str) -> dict[str, Any]:
    """format, and fields where a column is called otherwise than ours."""
    fields = {ours: column for ours, column in columns.items() if ours != column}
    return {"format": format_, **({"fields": fields} if fields else {})}


def _told(dataset: Section, key: str) -> str | None:
    value = dataset.text(key)
    if value is not None:
        dataset.tell(key, Fate.CARRIED, "→ fields of the source")
    return value


def _trained_turns(dataset: Section) -> None:
    """Roles that are as ours; what trains other turns than the assistant's is told."""
    roles = dataset.raw("roles")
    if isinstance(roles, Mapping):
        usual = all(
            isinstance(names, list) and set(names) <= _OWN_ROLES.get(str(to), set()) for to, names in roles.items()
        )
        if usual:
            dataset.tell("roles", Fate.CARRIED, "these names of roles are known")
        else:
            dataset.decide("roles", "roles have the names of docs/data.md: rename them in the rows")
    if "roles_to_train" in dataset:
        if set(dataset.words("roles_to_train")) <= {"assistant", "gpt"}:
            dataset.tell("roles_to_train", Fate.CARRIED, "→ loss_on: answers")
        else:
            dataset.decide("roles_to_train", "loss_on trains the assistant's turns (answers) or all")
    for key in ("message_field_training", "message_field_training_detail"):
        if key in dataset:
            dataset.decide(key, "an assistant's turn with weight: 0 is not trained; rename the key in the rows")
