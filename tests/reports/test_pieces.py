import html
import re
import xml.etree.ElementTree as ET

import pytest

from finetune.reports.pieces import STYLE, Html, code, facts, join, marked_pair, note, samples, table, text

NASTY = "<script>alert('1')</script> & \"q\" \x00\ud800"


def parsed(piece):
    """The piece as XML: ours is well formed, so what does not parse has a text in it that was not escaped."""
    return ET.fromstring(f"<div>{piece}</div>")


@pytest.mark.parametrize(
    "piece",
    [
        table([NASTY], [[NASTY]], caption=NASTY),
        facts([(NASTY, NASTY)]),
        code(NASTY, title=NASTY),
        note(NASTY),
        marked_pair(NASTY, NASTY + "x")[1],
        samples([{NASTY: NASTY, "prompt": NASTY}]),
        samples([{"prompt": NASTY, "base": NASTY, NASTY: NASTY}]),
        samples([{"messages": [{"role": NASTY, "content": NASTY, "tool_calls": [{"name": NASTY}]}], NASTY: 1}]),
        join([NASTY]),
    ],
    ids=["table", "facts", "code", "note", "marks", "samples", "sides", "messages", "join"],
)
def test_text_is_escaped(piece):
    assert isinstance(piece, Html)
    assert "<script" not in piece
    assert "alert('1')" in "".join(parsed(piece).itertext())
    piece.encode()  # no lone surrogate is left, so it can be written


def test_values():
    assert [text(value) for value in (None, True, 1234567, 0.0235265, 12345.6, 1234.5, 1000.0, float("nan"), 2e-5)] == [
        "—", "yes", "1,234,567", "0.02353", "12,346", "1,234", "1,000", "not finite", "2e-05",
    ]  # fmt: skip


def test_table_has_headings_and_numbers_to_the_right():
    root = parsed(table(["name", "rows"], [["a", 1200]], caption="Sources", numeric={1}))
    assert [head.get("scope") for head in root.iter("th")] == ["col", "col"]
    assert [cell.get("class") for cell in root.iter("td")] == [None, "ft-number"]
    assert root.find(".//caption").text == "Sources"
    box = root[0]
    assert (box.get("tabindex"), box.get("role"), box.get("aria-label")) == ("0", "region", "Sources")


def test_marks_are_on_the_words_that_differ():
    before, after = marked_pair("She lives in Paris, I think.", "She lives in Rome, I know.")
    assert before == ('She lives in <mark class="ft-before">Paris</mark>, I <mark class="ft-before">think</mark>.')
    assert after == "She lives in <mark>Rome</mark>, I <mark>know</mark>."
    assert marked_pair("one two", "six ten") == ('<mark class="ft-before">one two</mark>', "<mark>six ten</mark>")
    assert marked_pair("", "new") == ("", "<mark>new</mark>")
    assert marked_pair("same", "same") == ("same", "same")


@pytest.mark.parametrize("words", [20, 9000])
def test_marks_lose_no_text(words):
    old = " ".join(f"w{n}" for n in range(words))
    new = "Well. " + old.replace("w7 ", "seven ") + " End."
    for given, piece in zip((old, new), marked_pair(old, new), strict=True):
        assert html.unescape(re.sub("</?mark[^>]*>", "", piece)) == given


def test_samples_side_by_side_begin_with_the_base():
    root = parsed(samples([{"prompt": "Hi", "sft": "Hello there", "base": "Hello"}]))
    names = [element.text for element in root.iter("span") if element.get("class") == "ft-name"]
    assert names == ["prompt", "base", "sft"]
    assert [mark.text for mark in root.iter("mark")] == ["there"]
    same = samples([{"prompt": "Hi", "sft": "Hello", "base": "Hello"}])
    assert "sft, the same as base" in same and "<mark" not in same
    three = samples([{"prompt": "Hi", "sft": "Hello", "ppo": "Hello you", "base": "Well"}])
    assert re.findall(r"ft-name\">(\w+)<", three) == ["prompt", "base", "sft", "ppo"]
    assert three.count("<mark") == 1 and " <mark>you</mark>" in three
    assert "<mark" not in samples([{"prompt": "Hi", "a": "x", "b": "y"}], mark=False)


def test_samples_of_a_policy_have_their_numbers_and_say_how_many_there_are():
    piece = samples([{"step": 3, "prompt": "Hi", "answer": "", "finished": True, "reward": 1.5}] * 9, limit=2)
    assert piece.count("<article") == 2
    assert "step 3 · finished yes · reward 1.5" in piece
    assert "(nothing)" in piece and "2 of 9 rows" in piece
    assert samples([]) == '<p class="ft-quiet">no rows</p>'


def test_messages_are_shown_turn_by_turn():
    root = parsed(samples([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}]))
    assert [element.text for element in root.iter("p")] == ["Hi", "Yes"]


def test_every_rule_of_the_style_stands_under_its_class():
    bare = re.sub(r"@media [^{]*\{((?:[^{}]*\{[^{}]*\})*)\s*\}", r"\1", STYLE)
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", bare)
    assert len(rules) > 30
    for rule in rules:
        assert all(part.strip() == ".ft" or part.strip().startswith(".ft ") for part in rule.split(",")), rule
    assert "prefers-color-scheme:dark" in STYLE and "url(" not in STYLE and "@import" not in STYLE
