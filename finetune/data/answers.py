"""Sampled answers and their text: from token ids to what was said, to a row for later stages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.convert_prompts import message_fields
from finetune.data.encode import encode
from finetune.data.prepare_prompts import Prompt
from finetune.data.tokenizer import Tokenizer
from finetune.errors import InputError
from finetune.families.base import Family, as_dialog
from finetune.shapes import Completion, Dialog, Message

_CONTEXT = 8
"""Tokens of the prompt that an answer is decoded behind: the space that begins a word belongs to the word before."""


def answer_text(prompt: Prompt, ids: NDArray[np.int64], finished: bool, family: Family, tokenizer: Tokenizer) -> str:
    """What an answer says, without special tokens. ids: [n], the last one a stop token where it is `finished`.

    Of a conversation without white space around it, which belongs to the template; of raw text exactly what follows
    the prompt.
    """
    said = ids[:-1] if finished else ids
    if family.is_chat:
        return tokenizer.decode(said.tolist(), skip_special=True).strip()
    before = prompt.ids[-_CONTEXT:].tolist()
    known = tokenizer.decode(before, skip_special=True)
    whole = tokenizer.decode([*before, *said.tolist()], skip_special=True)
    return whole[len(known) :] if whole.startswith(known) else tokenizer.decode(said.tolist(), skip_special=True)


def answered(prompt: Prompt, text: str, family: Family) -> Dialog | Completion:
    """Prompt and answer as an example of which the answer alone is trained."""
    asked = prompt.example
    assert isinstance(asked, (Dialog, Completion))  # what prompts are made of
    if isinstance(asked, Completion):
        if not family.is_chat:
            return replace(asked, completion=text)
        asked = as_dialog(asked, answered=False)
    before = tuple(replace(m, trained=False) if m.role == "assistant" else m for m in asked.messages)
    return Dialog((*before, Message("assistant", text)), asked.tools)


def answer_row(prompt: Prompt, text: str, family: Family) -> dict[str, Any]:
    """A row for sft stages: of messages, or in a family without turns of prompt and completion."""
    example = answered(prompt, text, family)
    if isinstance(example, Completion):
        return {"prompt": example.prompt, "completion": example.completion}
    messages = message_fields(example.messages)
    for turn in messages[:-1]:
        if turn["role"] == "assistant":
            turn["weight"] = 0  # it belongs to the prompt
    return {"messages": messages, **_tools(example)}


def pair_row(prompt: Prompt, chosen: str, rejected: str, margin: float, family: Family) -> dict[str, Any]:
    """A row for dpo and reward stages. The answers are written as turns: bare text that looks like JSON would be read
    as such."""
    example = answered(prompt, chosen, family)
    if isinstance(example, Completion):
        fields = {"prompt": message_fields(as_dialog(example, answered=False).messages)}
    else:
        fields = {"prompt": message_fields(example.messages[:-1]), **_tools(example)}
    better, worse = (message_fields([Message("assistant", text)]) for text in (chosen, rejected))
    return {**fields, "chosen": better, "rejected": worse, "margin": margin}


def same_tokens_again(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    ids: Sequence[NDArray[np.int64]],
    family: Family,
    tokenizer: Tokenizer,
    system: str | None,
) -> list[bool]:
    """Whether an answer, written as text and tokenised as a row is, gives the sampled tokens again.

    It does not where a model splits a word otherwise than its tokenizer, begins with white space, ends its turn with
    another token than the template, or was cut in the middle of a word.
    """
    examples = [answered(prompt, text, family) for prompt, text in zip(prompts, texts, strict=True)]
    same = []
    for prompt, sampled, found in zip(prompts, ids, encode(examples, family, tokenizer, system=system), strict=True):
        whole = [*prompt.ids.tolist(), *sampled.tolist()]
        same.append(not isinstance(found, InputError) and found.input_ids[: len(whole)] == whole)
    return same


def _tools(dialog: Dialog) -> dict[str, Any]:
    return {"tools": [dict(tool) for tool in dialog.tools]} if dialog.tools else {}
