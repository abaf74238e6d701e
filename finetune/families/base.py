"""What a family is: how examples become pieces of text, and which special tokens stand between them.

Floor 1: no torch, no tokenizers. A family writes spans; `finetune.data.encode` turns spans into ids and a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.errors import InputError
from finetune.shapes import Completion, Dialog, Example, Message, Text


class RenderError(InputError):
    """An example that a template has no form for. Says what is wrong with it and what would be right."""


@dataclass(frozen=True)
class Span:
    """A piece of a rendered example.

    text: ordinary text, or the name of one special token where `special`. Text is never searched for special
    tokens, so what a user wrote cannot become one. Plain spans that follow one another are tokenised as ONE text and
    the mask is cut by characters, except before a span with `new_text`: there a text of its own begins.
    """

    text: str
    trained: bool
    special: bool = False
    new_text: bool = False


@dataclass(frozen=True)
class Generation:
    """What Meta's checkpoints of one generation share, whatever template is used on them.

    licence: the hub's licence id ("other": LLaMA 1, which has none). pads: the first of these that the tokenizer has
    is the pad token; never one that ends a text, or the model would not learn to stop.
    """

    name: str
    licence: str
    bos: str
    end: str
    pads: tuple[str, ...]


_SPM_PADS = ("<unk>", "<pad>", "[PAD]")
# 128004 is the pad of 3.1 and later under the first name, and has the second name in Llama 3.0.
_BPE_PADS = ("<|finetune_right_pad_id|>", *(f"<|reserved_special_token_{n}|>" for n in (2, *range(3, 251), 0, 1)))

GENERATIONS = {
    "llama1": Generation("llama1", "other", "<s>", "</s>", _SPM_PADS),
    "llama2": Generation("llama2", "llama2", "<s>", "</s>", _SPM_PADS),
    **{
        name: Generation(name, name, "<|begin_of_text|>", "<|end_of_text|>", _BPE_PADS)
        for name in ("llama3", "llama3.1", "llama3.2", "llama3.3")
    },
}

Turns = Callable[["Family", Dialog, bool], list[Span]]
"""(family, dialog, add_generation_prompt) -> the spans of the whole dialog, bos included."""


@dataclass(frozen=True)
class Family:
    """A template on a generation. `name` is how it is announced, `template` the recipe's `model.template`.

    stop: ends an assistant turn, trained. eos: every token that ends generation. needs: special tokens that the
    tokenizer must have. jinja: the files of this folder that make up the chat template, in order. is_chat: has a
    form for dialogs. about: one line for the user.
    """

    template: str
    generation: str
    licence: str
    bos: str
    end: str
    stop: tuple[str, ...]
    eos: tuple[str, ...]
    pads: tuple[str, ...]
    needs: tuple[str, ...]
    jinja: tuple[str, ...]
    about: str
    turns: Turns
    is_chat: bool = True

    @property
    def name(self) -> str:
        return f"{self.template} on {self.generation}"

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The special tokens that end an assistant turn; trained."""
        return self.stop

    @property
    def eos_tokens(self) -> tuple[str, ...]:
        """Every token at which generation stops."""
        return self.eos

    @property
    def lora_targets(self) -> str:
        """What LoRA should adapt: every linear layer of the blocks, the same in all text generations."""
        return "all-linear"

    def render(self, example: Example, *, add_generation_prompt: bool = False) -> list[Span]:
        """The example as spans, bos first. With `add_generation_prompt` it ends where an answer would begin.

        Raises RenderError naming what is wrong (roles out of order, content this template has no form for).
        """
        if isinstance(example, Text):
            if add_generation_prompt:
                return [Span(self.bos, False, special=True), Span(example.text, False)]
            return [
                Span(self.bos, True, special=True),
                Span(example.text, True),
                Span(self.end, True, special=True),
            ]
        if isinstance(example, Completion):
            if not self.is_chat:
                return self._raw(example, add_generation_prompt)
            example = as_dialog(example, answered=not add_generation_prompt)
        _check_dialog(example, add_generation_prompt)
        return self.turns(self, example, add_generation_prompt)

    def chat_template(self) -> str:
        """The Jinja chat template, to be saved beside the adapter: the same text as `render` writes.

        The tokens that it writes are named in it: a tokenizer's own idea of `eos_token` may be another.
        """
        tokens = f"{{%- set bos_token = '{self.bos}' -%}}\n{{%- set eos_token = '{self.end}' -%}}\n"
        return tokens + "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in self.jinja)

    def on(self, generation: str) -> Family:
        """The same template on a base of another generation: its licence, and its tokens where they are not fixed."""
        facts = GENERATIONS[generation]
        family = replace(self, generation=generation, licence=facts.licence)
        if self.stop == (self.end,):  # turns end with the generation's own token: </s> or <|end_of_text|>
            end = facts.end
            family = replace(family, bos=facts.bos, end=end, stop=(end,), eos=(end,), needs=(facts.bos, end))
        return replace(family, pads=facts.pads)

    def _raw(self, example: Completion, add_generation_prompt: bool) -> list[Span]:
        spans = [Span(self.bos, False, special=True), Span(example.prompt, False)]
        if not add_generation_prompt:
            spans += [Span(example.completion, True), Span(self.end, True, special=True)]
        return spans


def as_dialog(completion: Completion, *, answered: bool) -> Dialog:
    """A prompt and its continuation as one user and one assistant turn, for templates that have turns."""
    turns = [Message("user", completion.prompt)]
    if answered:
        turns.append(Message("assistant", completion.completion))
    return Dialog(tuple(turns))


def is_trained(message: Message) -> bool:
    """Assistant turns are trained and others are not, unless the row says otherwise."""
    return message.role == "assistant" if message.trained is None else message.trained


def check_turns(turns: Sequence[Message], template: str) -> None:
    """For templates that know only user, assistant, user, assistant. Raises RenderError at the first other turn."""
    for index, message in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if message.role != expected:
            before = f"after {turns[index - 1].role}" if index else "at the start"
            raise RenderError(
                f"turn {index + 1} is {message.role} {before}, but the {template} template needs user and assistant "
                f"turns that alternate and start with user: here {expected}"
            )


def _check_dialog(dialog: Dialog, add_generation_prompt: bool) -> None:
    if not any(message.role != "system" for message in dialog.messages):
        raise RenderError("the conversation has no turn")
    for index, message in enumerate(dialog.messages):
        if message.role == "system" and index > 0:
            raise RenderError(f"message {index + 1} is a system message, which can only be the first")
        if message.tool_calls and message.role != "assistant":
            raise RenderError(f"message {index + 1} has tool calls but is a {message.role} message, not an assistant's")
    if add_generation_prompt and dialog.messages[-1].role == "assistant":
        raise RenderError("a prompt must end with a user or tool message; this one ends with an assistant's")
