"""docs/reference/commands.md: every command as click knows it, with its options and the examples of its help."""

from __future__ import annotations

import importlib.util
import inspect
import re
from importlib import import_module

import click

from finetune.cli.main import COMMANDS

_HEAD = """# Commands

What `finetune COMMAND --help` says, for every command. This page is made from the commands by `scripts/docs.py`; a test
says when it is old. Exit codes and errors are in [their own page](errors.md). `finetune --version` prints the version.

| command | does |
|---|---|
"""


def commands_reference() -> str:
    """The whole page."""
    found = commands()
    text = _HEAD
    for name in found:
        text += f"| [`finetune {name}`](#finetune-{name}) | {COMMANDS[name][1]} |\n"
    return text + "".join(f"\n{_command(name, command)}" for name, command in found.items())


def commands() -> dict[str, click.Command]:
    """name → command, of all whose module is there."""
    targets = {name: target.partition(":") for name, (target, _) in COMMANDS.items()}
    return {
        name: getattr(import_module(module), attribute)
        for name, (module, _, attribute) in targets.items()
        if importlib.util.find_spec(module)
    }


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"finetune {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    text = f"## finetune {name}\n\n```text\nfinetune {name} {usage}\n```\n\n{_help(command)}\n"
    options = [
        parameter for parameter in command.params if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    if options:
        text += "\n| option | default | meaning |\n|---|---|---|\n"
        for option in options:
            text += "| " + " | ".join(cell.replace("|", "\\|") for cell in _option(option, context)) + " |\n"
    return text


def _help(command: click.Command) -> str:
    """The help text: paragraphs as they are, blocks that click would not wrap (after \\b) as code under their title."""
    parts = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if first.strip() != "\b":
            parts.append(" ".join(paragraph.split()))
            continue
        title, _, block = rest.partition("\n") if rest.partition("\n")[0].endswith(":") else ("", "", rest)
        kind = "sh" if title.startswith("Example") else "text"
        parts.append(f"{title}\n\n```{kind}\n{inspect.cleandoc(block)}\n```".lstrip())
    return "\n\n".join(part.replace("<", "&lt;") if "```" not in part else part for part in parts)


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """Its spelling with what it takes, its default, its meaning."""
    spelling = " / ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    choices = ""
    if isinstance(option.type, click.Choice):
        choices = " One of " + ", ".join(f"`{choice}`" for choice in option.type.choices) + "."
    elif not option.is_flag:
        spelling += f" {option.make_metavar(context)}"
    about, _, told = (option.help or "").partition("  [default: ")
    known = option.get_default(context, call=False)
    if option.required:
        shown = "required"
    elif told:
        shown = told.removesuffix("]")
    else:
        shown = f"`{known}`" if _says(known) and known is not False and not option.multiple else ""
    about = re.sub(r"(?<![`\w])(--[a-z][a-z-]*(?: \S+=\S*[^\s.])?)", r"`\1`", about)
    return spelling, shown, about + choices


def _says(value: object) -> bool:
    """Whether a default is a value to show: click marks those that nobody gave with an object of its own."""
    return isinstance(value, str | int | float | bool) or hasattr(value, "__fspath__")
