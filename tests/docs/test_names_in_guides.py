"""Keys and options that a sentence names exist: `train.epochs`, `max_length: 2048`, `--until`."""

from __future__ import annotations

import importlib.util
import json
import re
from functools import cache
from importlib import import_module

import click
import pytest
from guides import GENERATED, pages, read, spans

from finetune.cli.main import COMMANDS

NOT_OURS = {  # options of other programs, which the guides name as such
    "--enable-lora", "--quantization",  # vllm serve
    "--variants", "--checks-only", "--dry", "--small", "--tools", "--rows", "--rounds",  # tests/bench
}  # fmt: skip
SECTIONS = {
    "model": "ModelSettings", "adapter": "AdapterSettings", "track": "TrackSettings", "train": "TrainSettings",
    "held_out": "HeldOut", "safety": "SafetyReward", "temperature_search": "TemperatureSearch",
}  # fmt: skip
FILES = ("jsonl", "json", "md", "yaml", "py", "svg")
GUIDES = [path for path in pages() if path not in GENERATED and not path.endswith("migrating.md")]
"""Without the guide for people from other tools, which names the keys of these."""


@cache
def keys_of(section: str) -> set[str]:
    return set(json.loads(read("finetune/recipe/schema.json"))["$defs"][section]["properties"])


@cache
def options() -> set[str]:
    found = {"--help", "--version"}
    for target, _ in COMMANDS.values():
        module, _, attribute = target.partition(":")
        if importlib.util.find_spec(module):
            command: click.Command = getattr(import_module(module), attribute)
            found |= {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return found


def problem(text: str) -> str | None:
    """What is wrong with a span of code that looks like a key or an option of ours."""
    if (option := re.match(r"--[a-z][a-z-]*", text)) and option[0] not in options() | NOT_OURS:
        return f"no command has {option[0]}"
    dotted = re.match(r"(model|adapter|track|train|held_out|safety|temperature_search)\.(\w+)", text)
    if dotted and dotted[2] not in keys_of(SECTIONS[dotted[1]]) and dotted[2] not in FILES:
        return f"{dotted[1]} has no key {dotted[2]}"
    return None


@pytest.mark.parametrize("path", GUIDES)
def test_keys_and_options_in_sentences_exist(path: str) -> None:
    wrong = [f"{path}:{line}: `{text}`: {found}" for line, text in spans(path) if (found := problem(text))]
    assert not wrong, "\n".join(wrong)


def test_the_check_finds_what_is_wrong() -> None:
    assert problem("--untill STAGE") == "no command has --untill"
    assert problem("train.epoch: 2") == "train has no key epoch"
    assert problem("train.epochs: 2") is None and problem("--until STAGE") is None
