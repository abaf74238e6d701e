"""Every command in the guides is one: click itself reads it, without running it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from importlib import import_module

import click
import pytest
from guides import GENERATED, ROOT, Block, blocks, pages, prose, read, spans

from finetune.cli.main import COMMANDS

SHELLS = ("", "sh", "bash", "console", "text")
ENDS = ("|", ">", ">>", "<", "2>&1", "&&", ";", "&")


def command(name: str) -> click.Command | None:
    """None: it is listed, and its module is not there yet."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), attribute) if importlib.util.find_spec(module) else None


def calls(code: str) -> list[tuple[list[str], str]]:
    """(words, line) of every `finetune …` in shell code, with or without a prompt or a path before it."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        bare = re.sub(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:\S*/)?(?=finetune )", "", line)
        if not bare.startswith("finetune "):
            continue
        words = shlex.split(bare, comments=True)[1:]
        end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
        found.append((words[:end], line))
    return found


def problem(words: list[str], whole: bool) -> str | None:
    """What is wrong with a command line. whole: all of it is there, so what is required must be."""
    if not words or words[0].startswith("-"):
        return None if words in (["--help"], ["--version"], ["-h"]) else f"no such option {words}"
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    known = command(words[0])
    if known is None:
        return None
    context = click.Context(known, info_name=words[0])
    if not whole:
        spelt = {name for parameter in known.params for name in (*parameter.opts, *parameter.secondary_opts)}
        wrong = [word for word in words if word.startswith("-") and word.partition("=")[0] not in {*spelt, "--help"}]
        return f"no option {wrong}" if wrong else None
    try:
        given, rest, _ = known.make_parser(context).parse_args(words[1:])
    except click.UsageError as error:
        return error.format_message()
    if rest:
        return f"does not take {rest}"
    for parameter in known.params:
        value = given.get(parameter.name)
        if parameter.required and not isinstance(value, str | list | tuple):
            return f"lacks {parameter.name}"
        if isinstance(parameter.type, click.Choice) and isinstance(value, str) and value not in parameter.type.choices:
            return f"{parameter.opts[0]} is one of {parameter.type.choices}, not {value}"
    return None


def shell_blocks(path: str) -> list[Block]:
    return [block for block in blocks(path) if block.language.split(" ")[0] in SHELLS]


@pytest.mark.parametrize("path", pages())
def test_commands_in_blocks_parse(path: str) -> None:
    wrong = []
    for block in shell_blocks(path):
        usage = path in GENERATED and block.language == "text"  # `finetune x [OPTIONS] RECIPE`
        for words, line in [] if usage else calls(block.code):
            if found := problem(words, whole=True):
                wrong.append(f"{block}: {line.strip()}: {found}")
    for line in re.findall(r"^    ( *\S*finetune .*)$", prose(path), re.MULTILINE):
        for words, _ in calls(line):
            if found := problem(words, whole=True):
                wrong.append(f"{path}: {line}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", pages())
def test_commands_in_sentences_exist(path: str) -> None:
    wrong = []
    for line, text in spans(path):
        if re.match(r"(?:\S*/)?finetune [a-z-]", text):
            words = [word for word in re.split(r",?\s+", text)[1:] if word != "…"]
            if found := problem(words, whole=False):
                wrong.append(f"{path}:{line}: {text}: {found}")
    assert not wrong, "\n".join(wrong)


def test_the_checks_find_what_is_wrong() -> None:
    assert problem(["sfft", "recipe.yaml"], whole=True) == "no command sfft"
    assert "No such option" in (problem(["sft", "recipe.yaml", "--untl", "x"], whole=True) or "")
    assert problem(["export", "merged", "--to", "ggml", "--out", "x"], whole=True) is not None
    assert problem(["export", "merged", "--to", "gguf"], whole=True) == "lacks out"
    assert problem(["sft"], whole=True) == "lacks recipe"
    assert problem(["run", "RECIPE", "--form", "x"], whole=False) == "no option ['--form']"
    assert [words for words, _ in calls("$ .venv/bin/finetune sft a.yaml \\\n  --runs r > log # c")] == [
        ["sft", "a.yaml", "--runs", "r"]
    ]
    assert sum(len(calls(block.code)) for path in pages() for block in shell_blocks(path)) > 40


def test_every_command_is_in_a_guide() -> None:
    guides = [path for path in pages() if path not in GENERATED]
    used = {text.split()[1] for path in guides for _, text in spans(path) if text.startswith("finetune ")}
    for path in guides:
        used |= {words[0] for block in shell_blocks(path) for words, _ in calls(block.code) if words}
    assert set(COMMANDS) <= used, f"no guide speaks of {sorted(set(COMMANDS) - used)}"


def test_make_targets_scripts_and_extras_exist() -> None:
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    extras = set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])
    wrong = []
    for path in pages():
        code = [block.code for block in shell_blocks(path)]
        code += [text for _, text in spans(path)]
        for text in code:
            wrong += [
                f"{path}: make {name}" for name in re.findall(r"^make (\w+)", text, re.MULTILINE) if name not in targets
            ]
            for script in re.findall(r"^(?:\S*/)?python ([\w/]+\.py)", text, re.MULTILINE):
                wrong += [f"{path}: {script}"] * (not (ROOT / script).is_file())
            for named in re.findall(r"pip install .*?\[([\w,-]+)\]", text):
                wrong += [f"{path}: extra {name}" for name in named.split(",") if name not in extras]
    assert not wrong, "\n".join(wrong)
