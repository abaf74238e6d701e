"""Llama 3 (8B, 70B of April 2024): `<|start_header_id|>role<|end_header_id|>`, blank line, content, `<|eot_id|>`.

Followed: meta-llama/llama3, tokenizer.py `ChatFormat`. Contents are stripped; header, blank line and content are texts
of their own. Loss on the answer and <|eot_id|>, not on the header's blank line (llama-cookbook's SFT code trains that
too: it is part of every generation prompt, so there is nothing in it to learn).
Pad: 128004 has no pad name here; it is `<|reserved_special_token_2|>`, the token that 3.1 named the pad.
Tools: Meta published no format for 3.0; ours is in tools_as_text.py.
"""

from __future__ import annotations

from finetune.families.base import GENERATIONS, Family, Span, is_trained
from finetune.families.tools_as_text import as_text, system_text, with_context
from finetune.shapes import Dialog

EOT, EOM, PYTHON_TAG = "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"
HEADER_TOKENS = ("<|start_header_id|>", "<|end_header_id|>")


def header(role: str) -> list[Span]:
    """What opens a message of `role`: the user, assistant, system or ipython header and its blank line."""
    return [
        Span(HEADER_TOKENS[0], False, special=True),
        Span(role, False),
        Span(HEADER_TOKENS[1], False, special=True),
        Span("\n\n", False),
    ]


def message_spans(role: str, content: str, trained: bool, stop: str = EOT) -> list[Span]:
    """One whole message."""
    return [*header(role), Span(content, trained, new_text=True), Span(stop, trained, special=True)]


def _turns(family: Family, dialog: Dialog, add_generation_prompt: bool) -> list[Span]:
    own_system, tools, turns = as_text(dialog)
    system = system_text(own_system, tools)
    spans = [Span(family.bos, False, special=True)]
    if system is not None:
        spans += message_spans("system", system.strip(), _system_trained(dialog))
    for turn in turns:
        spans += message_spans(turn.role, with_context(turn).strip(), is_trained(turn))
    return [*spans, *header("assistant")] if add_generation_prompt else spans


def _system_trained(dialog: Dialog) -> bool:
    return dialog.messages[0].role == "system" and is_trained(dialog.messages[0])


_BASE = GENERATIONS["llama3"]

LLAMA3 = Family(
    template="llama3",
    generation=_BASE.name,
    licence=_BASE.licence,
    bos=_BASE.bos,
    end=_BASE.end,
    stop=(EOT,),
    eos=(_BASE.end, EOT),
    pads=_BASE.pads,
    needs=(_BASE.bos, _BASE.end, *HEADER_TOKENS, EOT),
    jinja=("tools_as_text.jinja", "llama3.jinja"),
    about="Llama 3: headers and <|eot_id|>, contents stripped",
    turns=_turns,
)
