"""A conversation in a terminal: what was said, what is asked next, and the commands that begin with a slash.

With two models both answer the same conversation. It goes on with the left answer, or with the one that was preferred,
so that every question has two answers to one and the same prompt: what a comparison needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.chat.model import Answering, Asked, Reply
from finetune.chat.preferences import VERDICTS, Given, append_row, keep_preference
from finetune.data.convert_prompts import message_fields
from finetune.errors import InputError
from finetune.recipe.words import did_you_mean
from finetune.shapes import Completion, Dialog, Message

AGAIN_TEMPERATURE = 0.8
"""Of /again where answers are greedy: another greedy answer would be the same."""


@dataclass(frozen=True)
class Turn:
    """A question and the answers to it, one of each model. going: the one that the conversation goes on with."""

    question: str
    replies: tuple[Reply, ...]
    going: int = 0
    judged: bool = False


class Leave(Exception):
    """/quit."""


class Redraw(Exception):
    """/again: the last question is to be asked once more."""


@dataclass
class Talk:
    """names: of one model, or of two side by side. chat: the template has a form for conversations; without one every
    question stands alone. system: before the conversation, None = none. pairs: where preferences go."""

    names: tuple[str, ...]
    chat: bool
    system: str | None
    settings: Answering
    pairs: Path
    turns: list[Turn] = field(default_factory=list)

    def asked(self, question: str) -> Asked:
        """The conversation with one question more."""
        return Dialog((*self._before(), Message("user", question))) if self.chat else Completion(question, "")

    def _before(self) -> list[Message]:
        found = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            answer = turn.replies[turn.going].text
            found += [Message("user", turn.question), Message("assistant", answer)]
        return found

    def answered(self, question: str, replies: Sequence[Reply]) -> None:
        self.turns.append(Turn(question, tuple(replies)))

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash. Returns what to tell. Raises InputError, Leave, Redraw."""
        name, _, argument = line.partition(" ")
        if name not in COMMANDS:
            hint = did_you_mean(name, COMMANDS) or "/help lists the commands; a question cannot begin with a slash"
            raise InputError(f"no command {name}: {hint}")
        return COMMANDS[name][1](self, argument.strip())

    # The commands

    def _save(self, argument: str) -> str:
        path = Path(_needed(argument, "/save FILE"))
        self._last("nothing was said yet")
        if not self.chat:
            for turn in self.turns:
                append_row(path, {"prompt": turn.question, "completion": turn.replies[turn.going].text})
            return f"{len(self.turns)} rows of prompt and completion appended to {path}"
        append_row(path, {"messages": message_fields(self._before())})
        return f"the conversation is appended to {path}, a row that sft stages read"

    def _system(self, argument: str) -> str:
        if not self.chat:
            raise InputError("this template has no system prompt")
        if not argument:
            return f"system prompt: {self.system or 'none'}; /system TEXT changes it, /system none takes it away"
        self.system = None if argument == "none" else argument
        return f"system prompt from now on: {self.system or 'none'}"

    def _temperature(self, argument: str) -> str:
        try:
            value = float(_needed(argument, "/temperature NUMBER"))
        except ValueError:
            value = -1.0
        if not 0 <= value <= 10:
            raise InputError("/temperature takes a number from 0 (the most probable words) to 10")
        self.settings = replace(self.settings, temperature=value)
        return f"temperature {value:g}" + (": the most probable words" if value == 0 else "")

    def _again(self, argument: str) -> str:
        self._last("nothing was asked yet")
        raise Redraw

    def again(self) -> tuple[str, Answering]:
        """The last question, taken out of the conversation, and how to draw another answer to it."""
        turn = self.turns.pop()
        self.settings = replace(self.settings, seed=self.settings.seed + 1)
        warm = self.settings.temperature or AGAIN_TEMPERATURE
        return turn.question, replace(self.settings, temperature=warm)

    def _undo(self, argument: str) -> str:
        turn = self._last("nothing was said yet")
        self.turns.pop()
        return f"taken back: {turn.question}"

    def _new(self, argument: str) -> str:
        self.turns.clear()
        return "a new conversation"

    def _prefer(self, argument: str) -> str:
        if len(self.names) < 2:
            raise InputError("one model answers: begin with --against base, or another run, to prefer one of two")
        turn = self._last("nothing was asked yet")
        verdict = next((each for each in VERDICTS if each == argument.replace(" ", "_")), None)
        if verdict is None:
            raise InputError("say /prefer left, /prefer right, /prefer tie or /prefer both_bad")
        if turn.judged:
            raise InputError("this question is judged already: /again draws other answers")
        left, right = (Given(name, reply.text) for name, reply in zip(self.names, turn.replies, strict=True))
        self.turns.pop()
        before = self._before() if self.chat else []
        self.turns.append(turn)
        asked = [*before, Message("user", turn.question)]
        path = keep_preference(self.pairs, asked, left, right, verdict, {"temperature": self.settings.temperature})
        self.turns[-1] = replace(turn, judged=True, going=1 if verdict == "right" else 0)
        goes_on = f"; the conversation goes on with {self.names[self.turns[-1].going]}'s" if self.chat else ""
        return f"appended to {path}{goes_on}"

    def _help(self, argument: str) -> str:
        lines = [f"  {name:<14}{about}" for name, (about, _) in COMMANDS.items()]
        more = [
            'Several lines: between two lines of three quotes ("""), or with a backslash at the end of a line.',
            "Ctrl-C stops the answer, Ctrl-D leaves.",
        ]
        return "\n".join([*lines, *more])

    def _quit(self, argument: str) -> str:
        raise Leave

    def _last(self, why_none: str) -> Turn:
        if not self.turns:
            raise InputError(why_none)
        return self.turns[-1]


def _needed(argument: str, usage: str) -> str:
    if not argument:
        raise InputError(f"say {usage}")
    return argument


COMMANDS: Mapping[str, tuple[str, Callable[[Talk, str], str]]] = {
    "/save": ("FILE: append the conversation, a row that sft stages read", Talk._save),
    "/prefer": ("left|right|tie|both_bad: keep which answer was better, for reward and dpo stages", Talk._prefer),
    "/again": ("another answer to the last question", Talk._again),
    "/undo": ("take the last question and its answer back", Talk._undo),
    "/new": ("begin a new conversation", Talk._new),
    "/system": ("TEXT: the system prompt; none takes it away; alone shows it", Talk._system),
    "/temperature": ("NUMBER: 0 = the most probable words, 1 = as the model has learnt", Talk._temperature),
    "/help": ("this", Talk._help),
    "/quit": ("leave", Talk._quit),
}
"""By name: what it does, and how."""
