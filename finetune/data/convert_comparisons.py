"""A row of each format of comparisons to Rankings and judged answers. What is not as the format says is a RowFault;
what is, but compares nothing, a NoComparison: such rows are counted and listed, and do not stop a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from finetune.data.convert import message_turns, sharegpt_turns, system_turn, tools_of
from finetune.data.fields import Record, RowFault, kind_of
from finetune.data.fitting import is_transcript, kind_of_turns
from finetune.data.formats import Known
from finetune.data.trees import rankings_of_tree
from finetune.recipe.words import did_you_mean
from finetune.shapes import RATINGS, Comparison, Dialog, Judged, Message, Ranking

Turns = tuple[Message, ...]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_NEGLIGIBLE = ("marginally", "unsure")
"""Other words for Llama 2's fourth rating: Llama 3's, and the one that Llama 2's own list has beside it."""


class NoComparison(Exception):
    """A row that is well formed and compares nothing; its text is the reason, for the report."""


def to_comparisons(values: Mapping[str, Any], known: Known) -> list[tuple[Comparison, Mapping[str, Any]]]:
    """The comparisons of one row, each with its other columns. Raises RowFault and NoComparison."""
    row = Record(values, known.columns)
    if known.name == "oasst":
        found = rankings_of_tree(row)
        if not found:
            raise NoComparison("trees without two ranked replies to one prompt")
        return [(ranking, {**_scalars(values), **extra}) for ranking, extra in found]
    return [(_comparison(row, known.name), _scalars(values))]


def _comparison(row: Record, name: str) -> Comparison:
    match name:
        case "pairs":
            return _pair(row, "prompt")
        case "sharegpt_pairs":
            return _pair(row, "conversations")
        case "hh":
            return _transcripts(row)
        case "ranked":
            return _ranked(row)
        case "alpaca_eval":
            return _alpaca_eval(row)
        case _:
            return _judged(row)


def _pair(row: Record, prompt_field: str) -> Ranking:
    asked = _turns(row, prompt_field, "user") if row.get(prompt_field) is not None else ()
    own = prompt_field == "prompt" and row.column("prompt") != row.column("input")
    if own and isinstance(row.get("prompt"), str):
        asked = (*asked[:-1], replace(asked[-1], context=row.optional_text("input")))  # Alpaca's separate input
    names = _answer_fields(row)
    found = [_turns(row, name, "assistant") for name in names]
    whole = [turns[0].role in ("system", "user") for turns in found if turns]
    if any(whole) and not all(whole):
        raise RowFault(f"{' and '.join(names)} should all repeat the prompt, or none of them", row.path(names[0]))
    if not any(whole):
        if not asked:
            raise RowFault("is missing, and chosen and rejected do not repeat it", row.path(prompt_field))
        return _ranking(row, asked, found, names, prompt_field)
    prompt, answers = _split(found, row, names)
    _check_repeated(asked, prompt, row, prompt_field)
    if asked and asked[0].role == "system" and prompt[0].role != "system":
        prompt = (asked[0], *prompt)
    return _ranking(row, prompt, answers, names, prompt_field)


def _answer_fields(row: Record) -> list[str]:
    """Best first, as in Llama 3: edited > chosen > rejected, where a row has an edited answer."""
    return [name for name in ("edited", "chosen", "rejected") if name != "edited" or row.get(name) not in (None, "")]


def _with_system(row: Record, turns: Turns) -> Turns:
    own = system_turn(row)
    if own and turns and turns[0].role == "system":
        if turns[0].content.strip() != own[0].content.strip():
            raise RowFault("a system prompt here and another in the messages", row.path("system"))
        return turns
    return (*own, *turns)


def _ranking(row: Record, prompt: Turns, answers: list[Turns], names: list[str], prompt_field: str) -> Ranking:
    _check_prompt(prompt, row, prompt_field)
    for name, answer in zip(names, answers, strict=True):
        _check_answer(answer, row, name)
    return Ranking(Dialog(_with_system(row, prompt), tools_of(row)), tuple(answers), _margin(row), _rating(row))


def _split(found: list[Turns], row: Record, names: list[str]) -> tuple[Turns, list[Turns]]:
    """Shared leading turns, up to where the assistant's turn comes, are the prompt; what follows are the answers."""
    shared = 0
    while all(len(turns) > shared and _same(turns[shared], found[0][shared]) for turns in found):
        shared += 1
    prompt = list(found[0][:shared])
    while prompt and prompt[-1].role == "assistant":
        prompt.pop()
    answers = [turns[len(prompt) :] for turns in found]
    for name, answer in zip(names, answers, strict=True):
        if not prompt or (answer and answer[0].role != "assistant"):
            raise RowFault(
                f"{' and '.join(names)} answer different questions: they differ before the assistant's turn "
                f"{len(prompt) + 1}",
                row.path(name),
            )
    return tuple(prompt), answers


def _check_repeated(asked: Turns, prompt: Turns, row: Record, prompt_field: str) -> None:
    """A prompt that stands in a field of its own must be what the conversations begin with."""
    own = [turn for turn in asked if turn.role != "system"]
    theirs = [turn for turn in prompt if turn.role != "system"]
    if len(own) > len(theirs) or any(not _same(a, b) for a, b in zip(own, theirs, strict=False)):
        raise RowFault("is not how chosen and rejected begin, though they repeat a prompt", row.path(prompt_field))


def _same(left: Message, right: Message) -> bool:
    return (
        left.role == right.role
        and left.content.strip() == right.content.strip()
        and (left.tool_calls == right.tool_calls)
    )


def _turns(row: Record, name: str, role: str) -> Turns:
    """A field's turns: text (one turn of `role`), one message, or a list of messages, OpenAI's or ShareGPT's."""
    value = row.required(name)
    if isinstance(value, Mapping):
        row = replace(row, values={**row.values, row.column(name): [value]})
        value = [value]
    if isinstance(value, str) and kind_of_turns(value, row.columns) is None:
        return (Message("user" if role == "user" else "assistant", row.text(name)),)
    if not isinstance(value, (str, list, tuple)):
        raise RowFault(f"should be text, a message or a list of messages, is {kind_of(value)}", row.path(name))
    if kind_of_turns(value, row.columns) == "sharegpt":
        # The field `system` belongs to the row, and is put before the prompt.
        bare = {key: value for key, value in row.values.items() if key != row.column("system")}
        return tuple(sharegpt_turns(replace(row, values=bare), name))
    return tuple(message_turns(row, name))


def _transcripts(row: Record) -> Ranking:
    names = _answer_fields(row)
    prompt = row.get("prompt")
    before = "" if prompt is None else row.text("prompt").rstrip()
    found = [_transcript(before + (" " if before else "") + row.text(name), row, name) for name in names]
    if any(turns[-1].role != "assistant" for turns in found):
        raise NoComparison("transcripts that end with the human's turn")
    if any(not turn.content for turns in found for turn in turns):
        raise NoComparison("transcripts with an empty turn")
    try:
        split, answers = _split(found, row, names)
    except RowFault as fault:
        raise NoComparison("transcripts that differ in the human's turn") from fault
    return _ranking(row, split, answers, names, "prompt")


def _transcript(text: str, row: Record, name: str) -> Turns:
    r"""The turns of "\n\nHuman: … \n\nAssistant: …"; turns of one speaker that follow each other are one."""
    if not is_transcript(text):
        raise RowFault("should be a transcript that begins with Human:", row.path(name))
    _, *pieces = _SPEAKER.split("\n\n" + text.lstrip())
    turns: list[Message] = []
    for speaker, content in zip(pieces[::2], pieces[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n\n{content.strip()}".strip())
        else:
            turns.append(Message("user" if speaker == "Human" else "assistant", content.strip()))
    return tuple(turns)


def _ranked(row: Record) -> Ranking:
    answers = row.items("answers")
    if len(answers) < 2:
        raise RowFault(f"should hold two or more answers, best first; has {len(answers)}", row.path("answers"))
    fields = {f"answers[{index}]": answer for index, answer in enumerate(answers)}
    inner = Record({**fields}, {key: column for key, column in row.columns.items() if key != "answers"}, row.at)
    found = [_turns(inner, name, "assistant") for name in fields]
    return _ranking(row, _turns(row, "prompt", "user"), found, list(fields), "prompt")


def _alpaca_eval(row: Record) -> Ranking:
    outputs = [_turns(row, name, "assistant") for name in ("output_1", "output_2")]
    value = row.required("preference")
    better = _number(value, row, "preference") if value is not None else 0.0
    if better in (0.0, 1.5):
        raise NoComparison("no preference")
    if better not in (1.0, 2.0):
        raise RowFault(f"should be 1 or 2 (0 or 1.5: neither), is {value!r}", row.path("preference"))
    names = ["output_1", "output_2"]
    if better == 2.0:
        outputs, names = outputs[::-1], names[::-1]
    return _ranking(row, _turns(row, "instruction", "user"), outputs, names, "instruction")


def _judged(row: Record) -> Judged:
    name = next((name for name in ("messages", "conversations") if row.get(name) is not None), "completion")
    if name == "completion":
        prompt, answer = _turns(row, "prompt", "user"), _turns(row, "completion", "assistant")
    else:
        turns = _turns(row, name, "user")
        asked = max((i for i, turn in enumerate(turns) if turn.role in ("user", "system")), default=-1) + 1
        prompt, answer = turns[:asked], turns[asked:]
    _check_prompt(prompt, row, "prompt" if name == "completion" else name)
    _check_answer(answer, row, name)
    return Judged(Dialog(_with_system(row, prompt), tools_of(row)), answer, _label(row))


def _check_prompt(prompt: Turns, row: Record, name: str) -> None:
    if not prompt or prompt[-1].role not in ("user", "tool"):
        last = f"ends with the {prompt[-1].role}'s turn" if prompt else "has no turn"
        raise RowFault(f"{last}: a prompt ends with the user's (or a tool's)", row.path(name))


def _check_answer(answer: Turns, row: Record, name: str) -> None:
    if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
        found = "is missing" if not answer else f"goes from {answer[0].role} to {answer[-1].role}"
        raise RowFault(f"the answer {found}: it should begin and end with the assistant's turn", row.path(name))


def _margin(row: Record) -> float | None:
    value = row.get("margin")
    if value is None or value == "":
        return None
    margin = _number(value, row, "margin")
    if margin < 0:
        raise RowFault(f"is {margin:g}: below 0 the rejected answer would be the better one", row.path("margin"))
    return margin


def _number(value: object, row: Record, name: str) -> float:
    """A finite number; CSV files have it as text."""
    if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    shown = f"{value!r:.40}" if isinstance(value, (str, int, float)) else kind_of(value)
    raise RowFault(f"should be a number, is {shown}", row.path(name))


def _rating(row: Record) -> str | None:
    """One of RATINGS, from spellings such as "Significantly better" or "negligibly better / unsure"."""
    value = row.get("rating")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    words = re.findall(r"[a-z]+", row.checked(value, "rating").lower())
    if (
        words
        and set(words) <= {"better", "or", "negligibly", *_NEGLIGIBLE}
        and set(words) & {"negligibly", *_NEGLIGIBLE}
    ):
        return RATINGS[3]
    spelt = "_".join(words)
    for rating in RATINGS:
        if spelt in (rating, rating.removesuffix("_better")):
            return rating
    hint = did_you_mean(spelt, RATINGS) or f"known are {', '.join(RATINGS)}"
    raise RowFault(f"unknown rating {value!r:.60} ({hint})", row.path("rating"))


def _label(row: Record) -> bool:
    value = row.required("label")
    if isinstance(value, str):  # CSV
        value = {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower(), value)
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    shown = f"{value!r:.40}" if isinstance(value, (str, int, float)) else kind_of(value)
    raise RowFault(f"should be true (desirable) or false, is {shown}", row.path("label"))


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items() if value is None or isinstance(value, (str, int, float))}


def without_space(answer: Turns) -> str:
    """What an answer says, without its white space: answers that differ in nothing else compare nothing."""
    return "\0".join(_squeezed(answer))


def _squeezed(answer: Turns) -> Iterator[str]:
    for turn in answer:
        yield turn.role
        yield "".join(turn.content.split())
        for call in turn.tool_calls:
            yield f"{call.name} {sorted(call.arguments.items())!r}"
