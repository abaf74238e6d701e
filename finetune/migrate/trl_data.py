"""TRL's data: dataset_name, a list of datasets, or the alignment handbook's dataset_mixture and dataset_mixer."""

from __future__ import annotations

from typing import Any

from finetune.migrate.account import Fate, Section
from finetune.migrate.draft import Draft
from finetune.migrate.rows import add_source, held_out_share, needs_rows, no_held_out

_FORMATS = {"kto": "judged"}
_OF_NAME = ("dataset_config", "dataset_train_split", "dataset_test_split", "dataset_streaming")


def add_data(draft: Draft, theirs: Section, kind: str) -> bool:
    """data and held_out; returns whether there are held-out rows. TRL measures only with eval_strategy."""
    extra: dict[str, Any] = {"format": _FORMATS[kind]} if kind in _FORMATS else {}
    column = theirs.text("dataset_text_field")
    if column is not None and column != "text":
        extra |= {"format": "text", "fields": {"text": column}}
        theirs.tell("dataset_text_field", Fate.CARRIED, "→ fields of the source")
    elif column is not None:
        theirs.tell("dataset_text_field", Fate.CARRIED, "it is text here too")
    measured = (theirs.text("eval_strategy") or theirs.text("evaluation_strategy") or "no").lower() not in (
        "no",
        "false",
    )
    if "datasets" in theirs or "dataset_mixture" in theirs:
        found = _mixture(draft, theirs if "datasets" in theirs else theirs.section("dataset_mixture"), extra)
        for key in ("dataset_name", *_OF_NAME):
            theirs.tell(key, Fate.LEFT_OUT, "a list of datasets is given, and counts")
    elif "dataset_mixer" in theirs:
        found = _mixer(draft, theirs, extra, measured)
    else:
        found = _one(draft, theirs, extra, measured)
    if not found:
        no_held_out(draft)
    needs_rows(draft, theirs, "dataset_name")
    return found


def _one(draft: Draft, theirs: Section, extra: dict[str, Any], measured: bool) -> bool:
    given = theirs.text("dataset_name")
    if given is None:
        return False
    whole = dict(extra)
    if subset := theirs.text("dataset_config"):
        whole["subset"] = subset
        theirs.tell("dataset_config", Fate.CARRIED, "→ subset of the source")
    if theirs.flag("dataset_streaming"):
        theirs.decide(
            "dataset_streaming", "rows are read whole; streaming: true on a hub source, with take, reads its first"
        )
    split, test = theirs.text("dataset_train_split") or "train", theirs.text("dataset_test_split") or "test"
    hub = "hub" in draft.places.rows(given, [])[0][0]
    add_source(
        draft, theirs, "dataset_name", given, [], {**whole, **({"split": split} if split != "train" else {})}, ("data",)
    )
    if hub:
        theirs.tell("dataset_train_split", Fate.CARRIED, "→ split of the source")
    else:
        theirs.tell("dataset_train_split", Fate.LEFT_OUT, "files have no splits here")
    if measured and hub:
        first = {key: theirs.account.told[theirs.at(key)] for key in ("dataset_name",)}
        add_source(draft, theirs, "dataset_name", given, [], {**whole, "split": test}, ("held_out", "data"))
        theirs.account.told.update({theirs.at(key): told for key, told in first.items()})
        theirs.tell("dataset_test_split", Fate.CARRIED, "→ split of held_out.data")
        return True
    if measured:
        theirs.decide("dataset_test_split", "files have no splits here: give the file to measure on as held_out.data")
        draft.account.decide("held_out: the test split of a folder of files is a file: give it as held_out.data")
    else:
        theirs.tell("dataset_test_split", Fate.LEFT_OUT, "without eval_strategy nothing is measured on it")
    return False


def _mixture(draft: Draft, theirs: Section, extra: dict[str, Any]) -> bool:
    """datasets: a list of what `load_dataset` takes, and columns. The alignment handbook says id, config and weight."""
    for dataset in theirs.sections("datasets"):
        whole = dict(extra)
        where = "id" if "id" in dataset else "path"
        given = dataset.text(where)
        if given is None:
            theirs.account.problem(dataset.at("path"), "missing key: path")
            continue
        for key, ours in (("name", "subset"), ("config", "subset"), ("split", "split")):
            if value := dataset.text(key):
                whole[ours] = value
                dataset.tell(key, Fate.CARRIED, f"→ {ours} of the source")
        for key in ("fraction", "weight"):
            if (share := dataset.number(key)) is not None and share > 0:
                whole["weight"] = float(share)
                note = "→ weight" if share == 1 else "→ weight: so much of it in each epoch, another part each time"
                dataset.tell(key, Fate.CARRIED if share == 1 else Fate.CHANGED, note)
        add_source(draft, dataset, where, given, dataset.words("data_files"), whole, ("data",))
        dataset.tell("data_files", Fate.CARRIED, "→ path of the source")
        dataset.tell("columns", Fate.LEFT_OUT, "columns that a format does not read are told and not used")
        if "data_dir" in dataset:
            dataset.decide("data_dir", "a folder of a hub data set is not chosen here: download it and give its path")
    if theirs.path:  # of dataset_mixture; the file's own is told elsewhere
        theirs.tell("seed", Fate.LEFT_OUT, "one seed for all: the recipe's")
    return held_out_share(draft, theirs, "test_split_size") if "test_split_size" in theirs else False


def _mixer(draft: Draft, theirs: Section, extra: dict[str, Any], measured: bool) -> bool:
    """The alignment handbook's: names with shares, and the splits of all of them."""
    mixer = theirs.section("dataset_mixer")
    splits = theirs.words("dataset_splits")
    train = next((split for split in splits if "train" in split), "train")
    test = next((split for split in splits if "test" in split), None)
    for name in mixer.values:
        share = mixer.number(name)
        whole = {**extra, **({"split": train} if train != "train" else {})}
        if share is not None and share not in (0, 1):
            whole["weight"] = float(share)
        add_source(draft, mixer, name, name, [], whole, ("data",))
        if measured and test is not None:
            told = theirs.account.told[mixer.at(name)]
            add_source(draft, mixer, name, name, [], {**extra, "split": test}, ("held_out", "data"))
            theirs.account.told[mixer.at(name)] = told
    theirs.tell("dataset_splits", Fate.CARRIED, "→ split of data and of held_out.data")
    return measured and test is not None
