"""The answers of runs and their base to prompts, written in chunks, each kept in the measurement's journal."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from finetune.chat.model import BASE, ROWS_AT_ONCE, Answering, ChatModel, PromptTooLongError, Reply, open_chat
from finetune.engine.progress import MakeProgress, make_progress
from finetune.errors import InputError
from finetune.evaluation.measurement import Measurement
from finetune.evaluation.prompts import Asked, question
from finetune.plan.manifest import read_manifest

Say = Callable[[str], None]
Replies = Sequence[Sequence[Reply]]
"""For each prompt, in order, its samples."""

_BATCHES_IN_CHUNK = 4
"""A chunk is written in about so many batches: few enough to lose little, enough to fill them."""


def write_replies(
    folders: Mapping[str, Path],
    names: Sequence[str],
    asked: Sequence[Asked],
    settings: Answering,
    measurement: Measurement,
    *,
    base: str | None,
    say: Say,
    progress: MakeProgress = make_progress,
) -> dict[str, Replies]:
    """The answers of `names`, each of `folders` or "base", to all prompts. Adapters of one base share it in memory;
    other runs are loaded one after the other. What the journal has is not written again. Raises InputError."""
    found: dict[str, list[list[Reply]]] = {name: [] for name in names}
    for entry in measurement.recall("replies"):
        found[entry["name"]] += [[Reply(**reply) for reply in replies] for replies in entry["replies"]]
    if done := sum(map(len, found.values())):
        say(f"answers to {done:,} prompts are there already, from an earlier attempt: going on from them")
    wanted = {name for name in names if len(found[name]) < len(asked)}
    for number, group in enumerate(_together(folders)):
        there = [name for name in names if name in wanted and (name in group or (name == BASE and number == 0))]
        if not there:
            continue
        chat = open_chat(group, base=base, say=say)
        _check_room(chat, asked)
        for name in there:
            _write(chat, name, asked, settings, found[name], measurement, progress)
        del chat
        free()
    return dict(found)


def _check_room(chat: ChatModel, asked: Sequence[Asked]) -> None:
    """Whether every prompt leaves room for an answer, before the first is answered. Raises InputError."""
    for index, each in enumerate(asked):
        try:
            chat.prompt(each)
        except PromptTooLongError as error:
            raise InputError(
                f"prompt {index + 1} of {len(asked):,} ('{question(each)[:40]}…') leaves no room for an answer: both "
                f"together have at most {chat.room:,} tokens here. Leave it out of the file"
            ) from error


def _write(
    chat: ChatModel,
    name: str,
    asked: Sequence[Asked],
    settings: Answering,
    found: list[list[Reply]],
    measurement: Measurement,
    make: MakeProgress,
) -> None:
    """Append what is missing to `found`."""
    if len(found) == len(asked):
        return
    chunk = max(1, _BATCHES_IN_CHUNK * ROWS_AT_ONCE // settings.samples)
    who = name if name in chat.names else BASE  # a whole model is its own base
    began, tokens = time.monotonic(), 0
    with closing(make(f"answers of {name}", len(asked), len(found))) as shown:
        while len(found) < len(asked):
            replies = chat.answer(asked[len(found) : len(found) + chunk], who, settings)
            measurement.note("replies", {"name": name, "replies": [[asdict(r) for r in each] for each in replies]})
            found += replies
            tokens += sum(reply.tokens for each in replies for reply in each)
            rate = tokens / (time.monotonic() - began)
            shown.update({"step": len(found), "tokens_per_second": rate})


def _together(folders: Mapping[str, Path]) -> list[dict[str, Path]]:
    """Runs that can share a base in memory, as groups."""
    groups: dict[Any, dict[str, Path]] = {}
    for name, folder in folders.items():
        manifest = read_manifest(folder)
        key: Any = name
        if manifest is not None and (folder / "adapter_config.json").is_file():
            model = manifest["recipe"]["model"]
            key = (manifest["base"]["digest"], manifest["family"]["template"], model["load_in"], model["system"])
        groups.setdefault(key, {})[name] = folder
    return list(groups.values())


def check_has_base(run: Path) -> None:
    """Whether the bare base can answer beside the run. Raises InputError for whole models."""
    if not (run / "adapter_config.json").is_file():
        raise InputError(f"{run} is a whole model without a base beside it: compare it with another run")


def free() -> None:
    """Give back what a model that nobody holds any more has taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
