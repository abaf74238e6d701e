"""LLaMA 1: a base without a chat format. Two templates: `plain` and Stanford's `alpaca`; both serve any generation.

plain: bos + prompt + completion + end, nothing between. It has no form for conversations, and says so: an
instruction glued to its answer would train, and teach nothing.

alpaca (tatsu-lab/stanford_alpaca, train.py): one text, `### Response:` directly followed by the answer, then </s>.
Loss on the answer and </s>. A token that reaches over the boundary (`:` and the answer's first character) belongs to
the prompt, as Stanford cuts labels by the length of the prompt's own encoding. Ours, where Stanford has no form:
- a system prompt replaces the sentence "Below is an instruction …"; tools stand after it (tools_as_text.py);
- further turns repeat the whole block after </s>, without a second bos;
- `context` of a turn is Alpaca's `input`.
"""

from __future__ import annotations

from finetune.families.base import GENERATIONS, Family, RenderError, Span, check_turns, is_trained
from finetune.families.tools_as_text import as_text, system_text
from finetune.shapes import Dialog, Message

_TASK = "Below is an instruction that describes a task"
_APPROPRIATELY = "Write a response that appropriately completes the request."
_WITHOUT_INPUT = f"{_TASK}. {_APPROPRIATELY}"
_WITH_INPUT = f"{_TASK}, paired with an input that provides further context. {_APPROPRIATELY}"


def _plain(family: Family, dialog: Dialog, add_generation_prompt: bool) -> list[Span]:
    raise RenderError(
        "the plain template has no form for a conversation: give rows with prompt and completion, or text, or set "
        "model.template to a chat template such as alpaca"
    )


def _alpaca(family: Family, dialog: Dialog, add_generation_prompt: bool) -> list[Span]:
    system, tools, turns = as_text(dialog)
    check_turns(turns, "alpaca")
    spans = [Span(family.bos, False, special=True)]
    for turn in turns:
        trained = is_trained(turn)
        if turn.role == "user":
            spans += _block(turn, system, tools, trained)
        else:
            spans += [Span(turn.content, trained), Span(family.end, trained, special=True)]
    return spans


def _block(turn: Message, system: str | None, tools: str, trained: bool) -> list[Span]:
    preamble = (_WITH_INPUT if turn.context else _WITHOUT_INPUT) if system is None else system
    spans = [Span(f"{system_text(preamble, tools)}\n\n### Instruction:\n", False), Span(turn.content, trained)]
    if turn.context:
        spans += [Span("\n\n### Input:\n", False), Span(turn.context, trained)]
    return [*spans, Span("\n\n### Response:", False)]


_BASE = GENERATIONS["llama1"]

PLAIN = Family(
    template="plain",
    generation=_BASE.name,
    licence=_BASE.licence,
    bos=_BASE.bos,
    end=_BASE.end,
    stop=(_BASE.end,),
    eos=(_BASE.end,),
    pads=_BASE.pads,
    needs=(_BASE.bos, _BASE.end),
    jinja=("plain.jinja",),
    about="raw text: prompt, completion and end token with nothing between",
    turns=_plain,
    is_chat=False,
)

ALPACA = Family(
    template="alpaca",
    generation=_BASE.name,
    licence=_BASE.licence,
    bos=_BASE.bos,
    end=_BASE.end,
    stop=(_BASE.end,),
    eos=(_BASE.end,),
    pads=_BASE.pads,
    needs=(_BASE.bos, _BASE.end),
    jinja=("tools_as_text.jinja", "alternate.jinja", "alpaca.jinja"),
    about="Stanford Alpaca: ### Instruction, ### Input, ### Response",
    turns=_alpaca,
)
