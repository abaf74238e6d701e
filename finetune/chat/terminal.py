"""Reading lines and answering them until the end: by somebody at a terminal, or from a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import TextIO

from rich.console import Console
from rich.text import Text

from finetune.chat.model import Answering, ChatModel
from finetune.chat.screen import Screen
from finetune.chat.talk import AGAIN_TEMPERATURE, Leave, Redraw, Talk
from finetune.engine.interrupt import StopRequest, stop_on_signals
from finetune.errors import InputError

_QUOTES = '"""'

ReadLine = Callable[[str], str]
"""A prompt to the line that was typed, without its end. Raises EOFError at the end."""


def at_a_terminal(model: ChatModel, talk: Talk, console: Console) -> None:
    """Ask and answer until Ctrl-D or /quit."""
    with suppress(ImportError):  # lines can be edited and called back; Windows and some builds have no readline
        import_module("readline")
    screen = Screen(console, plain=False)
    while True:
        try:
            line = _read(input)
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print(Text("Ctrl-D leaves", "dim"))
            continue
        try:
            if not _answer(line, model, talk, screen, lambda text: console.print(Text(text, "dim"), soft_wrap=True)):
                return
        except InputError as error:
            console.print(Text(str(error), "yellow"), soft_wrap=True)


def from_a_pipe(model: ChatModel, talk: Talk, lines: TextIO, console: Console) -> None:
    """Answer each line, the answers alone on the console; the rest goes to stderr. Raises InputError at the first line
    that cannot be answered, by its number."""
    numbered = enumerate(lines, 1)
    number = 0

    def next_line(prompt: str) -> str:
        nonlocal number
        found = next(numbered, None)
        if found is None:
            raise EOFError
        number = found[0]
        return found[1].rstrip("\r\n")

    screen = Screen(console, plain=True)
    while True:
        try:
            line = _read(next_line)
        except EOFError:
            return
        try:
            if not _answer(line, model, talk, screen, lambda text: print(text, file=sys.stderr)):
                return
        except InputError as error:
            raise InputError(f"line {number}: {error}") from error


def _read(read_line: ReadLine) -> str:
    """One question or command, of several lines where it is quoted or its lines end with a backslash."""
    line = read_line("> ")
    if line.startswith(_QUOTES):
        return "\n".join(_until_quotes(line.removeprefix(_QUOTES), read_line))
    parts = [line]
    while parts[-1].endswith("\\"):
        parts[-1] = parts[-1][:-1]
        parts.append(read_line(". "))
    return "\n".join(parts)


def _until_quotes(line: str, read_line: ReadLine) -> Iterator[str]:
    if not line:
        line = read_line(". ")
    while not line.endswith(_QUOTES):
        yield line
        line = read_line(". ")
    if rest := line.removesuffix(_QUOTES):
        yield rest


def _answer(line: str, model: ChatModel, talk: Talk, screen: Screen, tell: Callable[[str], None]) -> bool:
    """Answer a line, or carry it out. False where it was the last one. Raises InputError."""
    question, settings = line.strip(), talk.settings
    if not question:
        return True
    if question.startswith("/") and "\n" not in question:
        try:
            tell(talk.command(question))
            return True
        except Leave:
            return False
        except Redraw:
            kept = talk.turns[-1]
            question, settings = talk.again()
            if not talk.settings.temperature:
                tell(f"at temperature {AGAIN_TEMPERATURE:g}, for this once: the most probable words stay the same")
            if _ask(question, settings, model, talk, screen, tell) != "answered":
                talk.turns.append(kept)
            return True
    return _ask(question, settings, model, talk, screen, tell) != "leave"


def _ask(
    question: str, settings: Answering, model: ChatModel, talk: Talk, screen: Screen, tell: Callable[[str], None]
) -> str:
    asked = talk.asked(question)
    stop: StopRequest
    with stop_on_signals() as stop:
        replies = screen.show(
            lambda names: model.stream(asked, names, settings), talk.names, lambda: stop.received is not None
        )
    if replies is not None:
        talk.answered(question, replies)
        return "answered"
    if stop.received == "SIGTERM":
        return "leave"
    if screen.plain:
        raise KeyboardInterrupt
    tell("stopped; the question is not part of the conversation")
    return "stopped"
