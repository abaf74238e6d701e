"""Llama 2 chat: `<s>[INST] <<SYS>>…<</SYS>> user [/INST] answer </s>`, each pair of turns with a bos of its own.

Meta has two sources and they disagree. Followed: meta-llama/llama, generation.py `chat_completion`, what the chat
models were released with: a pair is ONE text, contents are stripped, the system prompt is folded into the first user
turn (and the two stripped together). Loss as in the Llama 2 paper: on the answer, from the space before it to </s>.
Not followed: llama-cookbook's `tokenize_dialog`, which encodes prompt and answer apart and lets a literal `</s>` in
user text become the end token; the ids agree but where that happens.
Tools: Meta published no format; ours is in tools_as_text.py.
"""

from __future__ import annotations

from finetune.families.base import GENERATIONS, Family, Span, check_turns, is_trained
from finetune.families.tools_as_text import as_text, system_text, with_context
from finetune.shapes import Dialog


def _turns(family: Family, dialog: Dialog, add_generation_prompt: bool) -> list[Span]:
    own_system, tools, turns = as_text(dialog)
    check_turns(turns, family.template)
    system = system_text(own_system, tools)
    spans: list[Span] = []
    for index, turn in enumerate(turns):
        trained = is_trained(turn)
        content = with_context(turn)
        if turn.role == "assistant":
            spans += [Span(f" {content.strip()} ", trained), Span(family.end, trained, special=True)]
            continue
        if index == 0 and system is not None:
            content = f"<<SYS>>\n{system}\n<</SYS>>\n\n{content}"
        spans += [
            Span(family.bos, False, special=True),
            Span("[INST] ", False),
            Span(content.strip(), trained),
            Span(" [/INST]", False),
        ]
    return spans


_BASE = GENERATIONS["llama2"]

LLAMA2 = Family(
    template="llama2",
    generation=_BASE.name,
    licence=_BASE.licence,
    bos=_BASE.bos,
    end=_BASE.end,
    stop=(_BASE.end,),
    eos=(_BASE.end,),
    pads=_BASE.pads,
    needs=(_BASE.bos, _BASE.end),
    jinja=("tools_as_text.jinja", "alternate.jinja", "llama2.jinja"),
    about="Llama 2 chat: [INST] user [/INST] answer </s>",
    turns=_turns,
)
