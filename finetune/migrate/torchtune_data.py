"""torchtune's dataset components, those that are known by name with the data set that each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.rows import add_source, no_held_out
from finetune.recipe.positions import KeyPath


@dataclass(frozen=True)
class Component:
    """format: ours. columns: their name of a column → ours. source and theirs: where the rows are, and which column
    is which, where the file does not say. on_input: whether prompts are trained by default."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    theirs: Mapping[str, str] = field(default_factory=dict)
    on_input: bool = False


_PAIRS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
_ALPACA = {"instruction": "instruction", "input": "input", "output": "output"}
_ANSWERS = {"input": "prompt", "output": "completion"}
_SAME = {"input": "input", "output": "output"}
_SAMSUM = {"input": "dialogue", "output": "summary"}
_KNOWN: Mapping[str, Component] = {
    "alpaca_dataset": Component("alpaca", _ALPACA, "tatsu-lab/alpaca", on_input=True),
    "alpaca_cleaned_dataset": Component("alpaca", _ALPACA, "yahma/alpaca-cleaned", on_input=True),
    "instruct_dataset": Component("prompt_completion", _ANSWERS, None, _SAME),
    "grammar_dataset": Component("prompt_completion", _ANSWERS, "liweili/c4_200m", _SAME),
    "samsum_dataset": Component("prompt_completion", _ANSWERS, "Samsung/samsum", _SAMSUM),
    "chat_dataset": Component("sharegpt"),
    "slimorca_dataset": Component("sharegpt", {}, "Open-Orca/SlimOrca-Dedup"),
    "text_completion_dataset": Component("text"),
    "cnn_dailymail_articles_dataset": Component("text", {}, "ccdv/cnn_dailymail", {"text": "article"}),
    "preference_dataset": Component("pairs", _PAIRS),
    "hh_rlhf_helpful_dataset": Component("pairs", _PAIRS, "RLHFlow/HH-RLHF-Helpful-standard"),
    "stack_exchange_paired_dataset": Component(
        "pairs", _PAIRS, "lvwerra/stack-exchange-paired",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
}  # fmt: skip
_FRAMED = ("alpaca_dataset", "alpaca_cleaned_dataset", "grammar_dataset", "samsum_dataset")
"""Components that write words of their own round the columns."""


def add_datasets(draft: Draft, theirs: Section) -> bool:
    """data, held_out, loss_on and the system prompt; returns whether rows are packed."""
    trained: set[bool] = set()
    found = theirs.sections("dataset")
    for section in found:
        trained.add(_add(draft, section, ("data",)))
    validation = theirs.sections("dataset_val")
    for section in validation:
        _add(draft, section, ("held_out", "data"))
    if not validation:
        no_held_out(draft)
    if draft.stage == "sft":
        path = draft.of_stage("loss_on")
        draft.put(path, "all" if True in trained else "answers", "train_on_input of the data sets, or its default")
        if len(trained) == 2:
            draft.account.decide("loss_on: some data sets train on prompts and some do not; here all of a stage's do")
    return any([bool(section.flag("packed")) for section in found])


def _add(draft: Draft, section: Section, to: KeyPath) -> bool:
    """One component as a source; returns whether its prompts are trained."""
    name = (section.text("_component_") or "").rpartition(".")[2]
    known = _KNOWN.get(name)
    extra, note = _format(section, known)
    if known is None:
        note = f"there is no {name or 'such data set'} here: see docs/data.md for a format and fields that fit"
    given = section.text("source") or (known.source if known else None)
    if given is None:
        section.account.problem(section.at("source"), f"{name} names no source: add where its rows are", None)
        return False
    split = section.text("split")
    if split:
        extra["split"] = split
        section.tell("split", Fate.CARRIED, "→ split of the source, where it is on the hub")
    if subset := section.text("name"):
        extra["subset"] = subset
        section.tell("name", Fate.CARRIED, "→ subset of the source")
    if name in _FRAMED:
        note = note or "its words round the columns are not written here: the question is the user's turn as it is"
        section.tell("_component_", Fate.CHANGED, note)
    elif note:
        section.decide("_component_", note)
    else:
        section.tell("_component_", Fate.CARRIED, f"→ format {extra['format']}")
    key = "source" if "source" in section else "_component_"
    before = section.account.told.get(section.at(key))
    add_source(draft, section, key, given, section.words("data_files"), extra, to)
    if key == "_component_" and before is not None:
        section.account.told[section.at(key)] = before
    section.tell("data_files", Fate.CARRIED, "→ path of the source")
    section.tell(
        "packed", Fate.LEFT_OUT if section.flag("packed") else Fate.EMPTY, "rows are laid end to end, nothing is padded"
    )
    if "data_dir" in section:
        section.decide("data_dir", "a folder of a hub data set is not chosen here: download it and give its path")
    if "filter_fn" in section:
        section.decide("filter_fn", "rows are not filtered here: leave them out of the file")
    if system := section.text("new_system_prompt"):
        where = ("model", "system")
        draft.carry(section, "new_system_prompt", where, system, "given to conversations that have none of their own")
    on_input = section.flag("train_on_input")
    section.tell("train_on_input", Fate.CARRIED, "→ loss_on")
    return known.on_input if on_input is None and known else bool(on_input)


def _format(section: Section, known: Component | None) -> tuple[dict[str, Any], str]:
    """(format and fields of the source, what is to be decided)."""
    if known is None:
        return {}, ""
    columns = {**known.theirs}
    given = section.section("column_map")
    for key in given.values:
        if (column := given.text(key)) is not None:
            columns[key] = column
    section.tell("column_map", Fate.CARRIED, "→ fields of the source")
    format_, names, note = known.format, dict(known.columns), ""
    if "conversation_column" in section or "conversation_style" in section:
        style = section.text("conversation_style") or "sharegpt"
        format_ = "messages" if style == "openai" else "sharegpt"
        own = "messages" if format_ == "messages" else "conversations"
        names, columns = {own: own}, {own: section.text("conversation_column") or own}
        section.tell("conversation_column", Fate.CARRIED, "→ fields of the source")
        section.tell("conversation_style", Fate.CARRIED, f"→ format {format_}")
    if format_ == "text":
        names, columns = {"text": "text"}, {"text": section.text("column") or columns.get("text", "text")}
        section.tell("column", Fate.CARRIED, "→ fields of the source")
    if "max_seq_len" in section:
        section.tell("max_seq_len", Fate.LEFT_OUT, "one limit for all rows: model.max_length")
    fields = {names[key]: column for key, column in columns.items() if key in names and names[key] != column}
    return {"format": format_, **({"fields": fields} if fields else {})}, note
