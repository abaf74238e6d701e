"""Vicuna v1.1 (lm-sys/FastChat, conversation.py `vicuna_v1.1` and train.py): on LLaMA 1 and Llama 2 alike.

`system USER: question ASSISTANT: answer</s>USER: …`; contents are not stripped; FastChat's own system prompt stands
where a row has none. Loss on the answer, from the space before it to </s>. As FastChat writes it, an empty answer is
the bare `ASSISTANT:` with nothing to train, not even </s>: such a turn cannot be told from an open prompt.
FastChat masks a whole conversation when its own re-tokenised lengths do not add up; ours are cut by characters and
always add up. Tools: ours, in tools_as_text.py.
"""

from __future__ import annotations

from finetune.families.base import GENERATIONS, Family, Span, check_turns, is_trained
from finetune.families.tools_as_text import as_text, system_text, with_context
from finetune.shapes import Dialog

_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _turns(family: Family, dialog: Dialog, add_generation_prompt: bool) -> list[Span]:
    own_system, tools, turns = as_text(dialog)
    check_turns(turns, family.template)
    system = system_text(_SYSTEM if own_system is None else own_system, tools)
    spans = [Span(family.bos, False, special=True), Span(f"{system} ", False)]
    for turn in turns:
        trained = is_trained(turn)
        content = with_context(turn)
        if turn.role == "user":
            spans += [Span("USER: ", False), Span(content, trained), Span(" ASSISTANT:", False)]
        elif content:
            spans += [Span(f" {content}", trained), Span(family.end, trained, special=True)]
    return spans


_BASE = GENERATIONS["llama2"]

VICUNA = Family(
    template="vicuna",
    generation=_BASE.name,
    licence=_BASE.licence,
    bos=_BASE.bos,
    end=_BASE.end,
    stop=(_BASE.end,),
    eos=(_BASE.end,),
    pads=_BASE.pads,
    needs=(_BASE.bos, _BASE.end),
    jinja=("tools_as_text.jinja", "alternate.jinja", "vicuna.jinja"),
    about="Vicuna v1.1: USER: question ASSISTANT: answer</s>",
    turns=_turns,
)
