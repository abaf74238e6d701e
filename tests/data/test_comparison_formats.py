"""Formats of comparisons: told from the rows, and each row to rankings and judged answers, or to what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.convert_comparisons import NoComparison, to_comparisons
from finetune.data.fields import RowFault
from finetune.data.fitting import EXAMPLES, FORMATS, JUDGED, PROMPTS, RANKINGS, Kind
from finetune.data.formats import Known, known_format
from finetune.data.readers import RawRow
from finetune.data.sources import content_key
from finetune.errors import DataError
from finetune.recipe.data_settings import DATA_FORMATS
from finetune.shapes import RATINGS, Comparison, Dialog, Judged, Message, Origin, Ranking, ToolCall

Values = dict[str, Any]
Q, GOOD, BAD, BEST = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad"), "best"
ASKED = Dialog((Q,))
PAIR = Ranking(ASKED, ((GOOD,), (BAD,)))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def raw(*values: Values) -> list[RawRow]:
    return [RawRow(value, Origin("d.jsonl", line=line)) for line, value in enumerate(values, start=1)]


def known(values: Values, kind: Kind = RANKINGS, name: str = "auto", fields: dict[str, str] | None = None) -> Known:
    return known_format(name, fields or {}, raw(values), "d.jsonl", kind)


def convert(values: Values, kind: Kind = RANKINGS, **more: Any) -> list[Comparison]:
    return [found for found, _ in to_comparisons(values, known(values, kind, **more))]


def fault(values: Values, kind: Kind = RANKINGS, name: str = "auto") -> tuple[str | None, str]:
    with pytest.raises(RowFault) as caught:
        convert(values, kind, name=name)
    return caught.value.field, caught.value.reason


def test_every_format_of_the_recipe_is_read_by_one_kind_of_stage() -> None:
    only_prompts = set(PROMPTS.formats) - set(EXAMPLES.formats)  # prompts are cut off conversations too
    read = [*EXAMPLES.formats, *RANKINGS.formats, *JUDGED.formats, *only_prompts]
    assert sorted(read) == sorted(FORMATS) == sorted(set(DATA_FORMATS) - {"auto"})


@pytest.mark.parametrize(
    ("values", "format_", "expected"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "pairs", PAIR),
        (
            {
                "prompt": [turn("user", "q")],
                "chosen": [turn("assistant", "good")],
                "rejected": turn("assistant", "bad"),
            },
            "pairs",
            PAIR,
        ),
        (  # the conversations repeat the prompt, which stands in a field of its own too: UltraFeedback
            {
                "prompt": "q",
                "chosen": [turn("user", "q"), turn("assistant", "good")],
                "rejected": [turn("user", "q "), turn("assistant", "bad")],
            },
            "pairs",
            PAIR,
        ),
        (  # … or does not; what they share up to the assistant's turn is the prompt
            {
                "chosen": [turn("system", "s"), turn("user", "q"), turn("assistant", "good")],
                "rejected": [turn("system", "s"), turn("user", "q"), turn("assistant", "bad")],
            },
            "pairs",
            Ranking(Dialog((Message("system", "s"), Q)), ((GOOD,), (BAD,))),
        ),
        (  # they part at the first answer: the rest of each conversation belongs to its answer
            {
                "chosen": [turn("user", "q"), turn("assistant", "good"), turn("user", "r"), turn("assistant", "on")],
                "rejected": [turn("user", "q"), turn("assistant", "bad"), turn("user", "r"), turn("assistant", "on")],
            },
            "pairs",
            Ranking(
                ASKED,
                (
                    (GOOD, Message("user", "r"), Message("assistant", "on")),
                    (BAD, Message("user", "r"), Message("assistant", "on")),
                ),
            ),
        ),
        (  # one conversation is the beginning of the other: the prompt still ends with the user
            {
                "chosen": [turn("user", "q"), turn("assistant", "good"), turn("user", "r"), turn("assistant", "on")],
                "rejected": [turn("user", "q"), turn("assistant", "good")],
            },
            "pairs",
            Ranking(ASKED, ((GOOD, Message("user", "r"), Message("assistant", "on")), (GOOD,))),
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad", "edited": "best", "rating": "Slightly better"},
            "pairs",
            Ranking(ASKED, ((Message("assistant", BEST),), (GOOD,), (BAD,)), None, "slightly_better"),
        ),
        (
            {"prompt": "q", "chosen": "good", "rejected": "bad", "system": "s", "margin": 0.5},
            "pairs",
            Ranking(Dialog((Message("system", "s"), Q)), ((GOOD,), (BAD,)), 0.5),
        ),
        (
            {"conversations": [said("human", "q")], "chosen": said("gpt", "good"), "rejected": said("gpt", "bad")},
            "sharegpt_pairs",
            PAIR,
        ),
        (
            {
                "conversations": [said("system", "s"), said("human", "q")],
                "system": "s",
                "chosen": [said("gpt", "good")],
                "rejected": "bad",
            },
            "sharegpt_pairs",
            Ranking(Dialog((Message("system", "s"), Q)), ((GOOD,), (BAD,))),
        ),
        (
            {
                "messages": [turn("user", "q")],
                "chosen": turn("assistant", "good"),
                "rejected": turn("assistant", "bad"),
            },
            "pairs",
            PAIR,
        ),
        (
            {
                "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good",
                "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad\n\nno",
            },
            "hh",
            Ranking(
                Dialog((Q, Message("assistant", "a"), Message("user", "r"))),
                ((GOOD,), (Message("assistant", "bad\n\nno"),)),
            ),
        ),
        (
            {"prompt": "\n\nHuman: q\n\nHuman: p\n\nAssistant:", "chosen": "good", "rejected": " bad"},
            "hh",
            Ranking(Dialog((Message("user", "q\n\np"),)), ((GOOD,), (BAD,))),
        ),
        (
            {"instruction": "q", "input": "c", "chosen": "good", "rejected": "bad"},
            "pairs",
            Ranking(Dialog((Message("user", "q", context="c"),)), ((GOOD,), (BAD,))),
        ),
        ({"prompt": "q", "answers": ["good", turn("assistant", "bad")]}, "ranked", PAIR),
        (
            {"prompt": [turn("user", "q")], "answers": '["good", "bad", "worse"]'},
            "ranked",
            Ranking(ASKED, ((GOOD,), (BAD,), (Message("assistant", "worse"),))),
        ),
        ({"instruction": "q", "output_1": "good", "output_2": "bad", "preference": 1}, "alpaca_eval", PAIR),
        ({"instruction": "q", "output_1": "bad", "output_2": "good", "preference": 2.0}, "alpaca_eval", PAIR),
        ({"prompt": "q", "completion": "good", "label": "True"}, "judged", Judged(ASKED, (GOOD,), True)),
        (
            {"messages": [turn("user", "q"), turn("assistant", "bad")], "label": False},
            "judged",
            Judged(ASKED, (BAD,), False),
        ),
        (
            {"conversations": [said("human", "q"), said("gpt", "good")], "label": 1, "system": "s"},
            "judged",
            Judged(Dialog((Message("system", "s"), Q)), (GOOD,), True),
        ),
    ],
)
def test_a_row_of_every_format(values: Values, format_: str, expected: Comparison) -> None:
    kind = JUDGED if format_ == "judged" else RANKINGS
    assert known(values, kind).name == format_ and known(values, kind).detected
    assert convert(values, kind) == [expected]
    assert convert(values, kind, name=format_, fields=dict(known(values, kind).columns)) == [expected]


def test_the_answer_of_a_judged_conversation_is_all_that_follows_the_last_question() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    turns = [
        turn("user", "p"),
        turn("assistant", "a"),
        turn("user", "q"),
        call,
        turn("tool", "1"),
        turn("assistant", "good"),
    ]
    (judged,) = convert({"messages": turns, "label": True}, JUDGED)
    assert isinstance(judged, Judged)
    assert [m.role for m in judged.prompt.messages] == ["user", "assistant", "user"]
    assert judged.answer == (
        Message("assistant", "", (ToolCall("f", {"x": 1}),)),
        Message("tool", "1"),
        GOOD,
    )


def reply(text: str, rank: int | None = None, *replies: Values, **more: Any) -> Values:
    return {"text": text, "role": "assistant", "rank": rank, "replies": [*replies], **more}


def ask(text: str, *replies: Values, **more: Any) -> Values:
    return {"text": text, "role": "prompter", "replies": [*replies], "lang": "en", **more}


def test_every_prompt_of_a_tree_with_two_ranked_replies_is_a_ranking() -> None:
    deeper = ask("r", reply("worse", 1), reply("better", 0), reply("unranked"))
    tree = ask(
        "q", reply("bad", 2), reply("gone", 1, deleted=True), reply("good", 0, deeper, ask("s", reply("one", 0)))
    )
    values = {"message_tree_id": "t", "prompt": tree}
    assert known(values).name == "oasst"
    (first, about), (second, _) = to_comparisons(values, known(values))
    assert first == PAIR
    assert second == Ranking(
        Dialog((Q, GOOD, Message("user", "r"))), ((Message("assistant", "better"),), (Message("assistant", "worse"),))
    )
    assert about["lang"] == "en" and about["message_tree_id"] == "t"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": ask("q", reply("a", 0), reply("b", 0))}, "two ranked replies"),
        ({"prompt": ask("q", reply("a", 0))}, "two ranked replies"),
        ({"prompt": ask("q", reply("a", 0), reply("b", 1), deleted=True)}, "two ranked replies"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 0}, "no preference"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": None}, "no preference"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: "}, "empty turn"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"}, "end with the human's turn"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: p\n\nAssistant: b"}, "the human's turn"),
    ],
)
def test_rows_that_compare_nothing_are_no_faults(values: Values, reason: str) -> None:
    with pytest.raises(NoComparison, match=reason):
        convert(values)


USER, ANSWER = turn("user", "q"), turn("assistant", "a")


@pytest.mark.parametrize(
    ("values", "name", "field", "reason"),
    [
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "pairs", "chosen", "is empty"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "pairs", "chosen", "is null"),
        ({"prompt": "q", "chosen": "a", "rejected": 7}, "pairs", "rejected", "is a number (7)"),
        ({"prompt": "q", "chosen": "a"}, "pairs", "rejected", "is missing"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "pairs", "prompt", "is blank"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "pairs", "prompt", "is missing, and chosen and rejected do not"),
        ({"chosen": [USER, ANSWER], "rejected": [ANSWER]}, "pairs", "chosen", "all repeat the prompt, or none"),
        ({"chosen": [USER, ANSWER], "rejected": [turn("user", "p"), ANSWER]}, "pairs", "chosen", "different questions"),
        ({"prompt": "p", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "pairs", "prompt", "is not how chosen"),
        ({"prompt": [USER, ANSWER], "chosen": "a", "rejected": "b"}, "pairs", "prompt", "ends with the assistant's"),
        ({"prompt": "q", "chosen": [ANSWER, USER], "rejected": "b"}, "pairs", "chosen", "from assistant to user"),
        ({"prompt": "q", "chosen": [], "rejected": "b"}, "pairs", "chosen", "has no messages"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, "pairs", "margin", "a number, is 'much'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, "pairs", "margin", "should be a number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1}, "pairs", "margin", "below 0"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("nan")}, "pairs", "margin", "is nan"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "rating": "beter"}, "pairs", "rating", "mean 'better'?"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "rating": 3}, "pairs", "rating", "is a number (3)"),
        ({"conversations": [said("human", "q")], "chosen": said("gtp", "a"), "rejected": said("gpt", "b")},
         "sharegpt_pairs", "chosen[0].from", "mean 'gpt'?"),
        ({"chosen": "Assistant: a", "rejected": "Human: b"}, "hh", "chosen", "begins with Human:"),
        ({"prompt": "q", "answers": ["a"]}, "ranked", "answers", "has 1"),
        ({"prompt": "q", "answers": ["a", None]}, "ranked", "answers[1]", "is null"),
        ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 3}, "alpaca_eval", "preference", "1 or"),
        ({"prompt": ask("q", reply("a", 0), {"text": "b", "role": "assistant", "rank": 0.5})},
         "oasst", "prompt.replies[1].rank", "whole number"),
        ({"prompt": ask("q", reply("a", 0), reply(" ", 1))}, "oasst", "prompt.replies[1].text", "is blank"),
        ({"prompt": ask("q", ask("a"))}, "oasst", "prompt.replies[0].role", "should be assistant"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "judged", "label", "true (desirable) or false"),
        ({"prompt": "q", "completion": "a", "label": 2}, "judged", "label", "is 2"),
        ({"messages": [USER], "label": True}, "judged", "messages", "the answer is missing"),
        ({"messages": [ANSWER], "label": True}, "judged", "messages", "has no turn"),
    ],
)  # fmt: skip
def test_faults_name_the_field_and_the_reason(values: Values, name: str, field: str, reason: str) -> None:
    found = fault(values, JUDGED if name == "judged" else RANKINGS, name)
    assert found[0] == field and reason in found[1]


@pytest.mark.parametrize(
    ("spelling", "rating"),
    [
        ("significantly_better", 0), ("Significantly Better", 0), ("significantly", 0), ("better", 1), ("BETTER ", 1),
        ("slightly-better", 2), ("negligibly better / unsure", 3), ("Negligibly better or unsure", 3), ("unsure", 3),
        ("marginally better", 3), ("", None), (None, None),
    ],
)  # fmt: skip
def test_ratings_in_several_spellings(spelling: str | None, rating: int | None) -> None:
    (ranking,) = convert({"prompt": "q", "chosen": "a", "rejected": "b", "rating": spelling})
    assert isinstance(ranking, Ranking)
    assert ranking.rating == (None if rating is None else RATINGS[rating])


@pytest.mark.parametrize(("margin", "expected"), [("0.25", 0.25), (2, 2.0), (0, 0.0), ("", None), (None, None)])
def test_margins_are_numbers_or_their_text(margin: object, expected: float | None) -> None:
    (ranking,) = convert({"prompt": "q", "chosen": "a", "rejected": "b", "margin": margin})
    assert isinstance(ranking, Ranking) and ranking.margin == expected


_PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
_KTO = {"messages": [USER, ANSWER], "label": True}


@pytest.mark.parametrize(
    ("values", "kind", "name", "message"),
    [
        (_PAIR, EXAMPLES, "pairs", "format pairs is for reward and dpo stages; this one reads alpaca, sharegpt"),
        (_PAIR, EXAMPLES, "auto", "look like pairs for preference training, which reward and dpo stages read"),
        ({"conversations": [said("human", "q")], "chosen": said("gpt", "a"), "rejected": said("gpt", "b")},
         EXAMPLES, "auto", "fits more than one format, sharegpt and sharegpt_pairs"),
        (_KTO, EXAMPLES, "auto", "fits more than one format, messages and judged"),
        (_KTO, RANKINGS, "auto", "look like judged, which dpo stages with loss: kto read"),
        ({"instruction": "q", "output": "a"}, RANKINGS, "auto", "look like alpaca, which sft stages read"),
        ({"instruction": "q", "output": "a"}, RANKINGS, "alpaca", "format alpaca is for sft stages; this one reads"),
        (_PAIR, JUDGED, "auto", "look like pairs for preference training, which reward and dpo stages read"),
        (_PAIR, JUDGED, "pairs", "this one reads judged"),
        (_KTO, RANKINGS, "judged", "format judged is for dpo stages with loss: kto"),
        ({**_PAIR, "answers": ["a", "b"]}, RANKINGS, "auto", "fits more than one format, ranked and pairs"),
        ({"question": "q", "chosen_response": "a", "rejected_response": "b"}, RANKINGS, "auto",
         "fields: {prompt: question, chosen: chosen_response, rejected: rejected_response}"),
        ({"prompt": "q", "chosen": "a", "rejeted": "b"}, RANKINGS, "auto", "Did you mean 'rejected' for 'rejeted'?"),
    ],
)  # fmt: skip
def test_rows_of_another_kind_of_stage_are_told(values: Values, kind: Kind, name: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        known(values, kind, name)
    assert message in str(caught.value)


def test_other_names_of_fields() -> None:
    fields = {"prompt": "question", "chosen": "win", "rejected": "lose", "rating": "grade"}
    values = {"question": "q", "win": "good", "lose": "bad", "grade": "better"}
    assert convert(values, fields=fields) == [Ranking(ASKED, ((GOOD,), (BAD,)), None, "better")]


def test_keys_tell_apart_what_differs_and_nothing_else() -> None:
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "bad", "rejected": "good"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 1},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "rating": "better"},
        {"prompt": "q", "chosen": "good", "rejected": "bad", "edited": "best"},
    ]
    keys = [content_key(convert(row)[0]) for row in rows]
    assert len(set(keys)) == len(rows)
    chat = {"chosen": [USER, turn("assistant", "good")], "rejected": [USER, turn("assistant", "bad")]}
    assert content_key(convert(chat)[0]) == keys[0]
    judged = [convert({"prompt": "q", "completion": "a", "label": label}, JUDGED)[0] for label in (True, False)]
    assert len({*map(content_key, judged)}) == 2


_NAMES = sorted({name for kind in (RANKINGS, JUDGED) for f in kind.formats for name in FORMATS[f].names})
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-1, 3)
    | st.floats()
    | st.sampled_from(
        [
            "",
            " ",
            "user",
            "assistant",
            "gpt",
            "human",
            "prompter",
            "better",
            "a",
            "\n\nHuman: q\n\nAssistant: a",
            "[]",
            "\ud800",
        ]
    )
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=5),
    st.sampled_from([*RANKINGS.formats, *JUDGED.formats]),
)
def test_any_row_is_comparisons_or_a_fault(values: Values, name: str) -> None:
    for kind in (RANKINGS, JUDGED, EXAMPLES):
        try:
            known(values, kind)
        except DataError as error:
            assert str(error)
    try:
        found = to_comparisons(values, Known(name, {}, detected=False))
    except (RowFault, NoComparison) as error:
        assert str(error)
        return
    for comparison, _ in found:
        answers = comparison.answers if isinstance(comparison, Ranking) else (comparison.answer,)
        assert comparison.prompt.messages[-1].role in ("user", "tool")
        assert all(answer[0].role == answer[-1].role == "assistant" for answer in answers)
        assert len(answers) >= (2 if isinstance(comparison, Ranking) else 1)
