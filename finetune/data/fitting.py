"""Which formats a row fits, by its fields and, where several formats share a field, by what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.data.fields import RowFault, parse_json


@dataclass(frozen=True)
class Format:
    """needs: fields every row must have; may: fields it can have; turn: fields of the messages inside."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.needs, *self.may, *self.turn)


_MESSAGE = ("role", "content", "tool_calls", "weight")
_RATED = ("edited", "margin", "rating")

FORMATS: Mapping[str, Format] = {
    "alpaca": Format(("instruction", "output"), ("input", "history", "system")),
    "sharegpt": Format(("conversations",), ("tools", "system"), ("from", "value")),
    "messages": Format(("messages",), ("tools",), _MESSAGE),
    "prompt_completion": Format(("prompt", "completion"), ("tools",), _MESSAGE),
    "text": Format(("text",)),
    "prompt": Format(("prompt",), ("system", "tools"), _MESSAGE),
    "pairs": Format(("chosen", "rejected"), ("prompt", "input", "system", "tools", *_RATED), _MESSAGE),
    "sharegpt_pairs": Format(("conversations", "chosen", "rejected"), ("system", "tools", *_RATED), ("from", "value")),
    "hh": Format(("chosen", "rejected"), ("prompt", *_RATED)),
    "ranked": Format(("prompt", "answers"), ("system", "tools"), _MESSAGE),
    "oasst": Format(("prompt",), (), ("text", "role", "rank", "replies", "deleted")),
    "alpaca_eval": Format(("instruction", "output_1", "output_2", "preference")),
    "judged": Format(
        ("label",),
        ("prompt", "completion", "messages", "conversations", "system", "tools"),
        (*_MESSAGE, "from", "value"),
    ),
}


@dataclass(frozen=True)
class Kind:
    """What a stage learns from. formats: those it reads. who: reads them, for messages."""

    formats: tuple[str, ...]
    who: str


EXAMPLES = Kind(("alpaca", "sharegpt", "messages", "prompt_completion", "text"), "sft stages")
RANKINGS = Kind(("pairs", "sharegpt_pairs", "hh", "ranked", "oasst", "alpaca_eval"), "reward and dpo stages")
JUDGED = Kind(("judged",), "dpo stages with loss: kto")
PROMPTS = Kind(
    ("alpaca", "sharegpt", "messages", "prompt_completion", "prompt"), "stages that sample: reject, ppo, grpo and rloo"
)
KINDS = (EXAMPLES, RANKINGS, JUDGED, PROMPTS)


def kind_of_format(name: str) -> Kind:
    return next(kind for kind in KINDS if name in kind.formats)


def fitting(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Every format that a row has the needed fields of, with the names of its fields (ours -> the file's)."""

    def has(*names: str) -> bool:
        return all(fields.get(name, name) in values for name in names)

    fits: dict[str, Mapping[str, str]] = {}
    for name in ("alpaca", "prompt_completion", "text", "alpaca_eval", "ranked"):
        if has(*FORMATS[name].needs):
            fits[name] = dict(fields)
    fits.update(_conversations(values, fields))
    if has("chosen", "rejected"):
        fits.update(_pairs(values, fields))
    if has("prompt") and is_tree(values[fields.get("prompt", "prompt")]):
        fits["oasst"] = dict(fields)
    if has("label") and (has("prompt", "completion") or has("messages") or has("conversations")):
        fits["judged"] = dict(fields)
    return fits


def prompt_alone(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """The format `prompt` for a row that fits no other: any row that says what is asked may serve for sampling."""
    return {"prompt": dict(fields)} if fields.get("prompt", "prompt") in values else {}


def is_transcript(value: object) -> bool:
    r"""Text that begins as the transcripts of HH-RLHF do: "\n\nHuman: …"."""
    return isinstance(value, str) and value.lstrip().startswith("Human:")


def is_tree(value: object) -> bool:
    return isinstance(value, Mapping) and "replies" in value


def _conversations(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    fits: dict[str, Mapping[str, str]] = {}
    for name, own in (("messages", "messages"), ("sharegpt", "conversations")):
        column = fields.get(own, own)
        if column in values:
            # Both names are used for both kinds of turns: the turns decide.
            kind = kind_of_turns(values[column], fields) or name
            fits.setdefault(kind, {**fields, FORMATS[kind].needs[0]: column})
    return fits


def _pairs(values: Mapping[str, Any], fields: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Rows with chosen and rejected: where the prompt is tells the formats apart."""
    chosen = values[fields.get("chosen", "chosen")]
    prompt = fields.get("prompt", "prompt")
    if prompt in values:
        value = values[prompt]
        ends = isinstance(value, str) and value.rstrip().endswith("Assistant:")
        return {"hh" if is_transcript(value) and ends else "pairs": dict(fields)}
    if is_transcript(chosen):
        return {"hh": dict(fields)}
    if isinstance(chosen, (list, tuple)) and len(chosen) > 1:
        return {"pairs": dict(fields)}  # the prompt is in both of them; other columns of turns are copies of it
    for own in ("conversations", "messages"):
        column = fields.get(own, own)
        if column in values:
            if kind_of_turns(values[column], fields) == "messages":
                return {"pairs": {**fields, "prompt": column}}
            return {"sharegpt_pairs": {**fields, "conversations": column}}
    if "prompt" not in fields and "instruction" in values:  # Alpaca's word for it
        return {"pairs": {**fields, "prompt": "instruction"}}
    return {"pairs": dict(fields)} if kind_of_turns(chosen, fields) else {}


def kind_of_turns(turns: Any, fields: Mapping[str, str]) -> str | None:
    """messages or sharegpt, by the fields of the first turn of a list (which may be written as JSON)."""
    if isinstance(turns, str):
        try:
            turns = parse_json(turns, "")
        except RowFault:
            return None
    if isinstance(turns, (list, tuple)) and turns and isinstance(turns[0], Mapping):
        if fields.get("role", "role") in turns[0]:
            return "messages"
        if fields.get("from", "from") in turns[0]:
            return "sharegpt"
    return None
