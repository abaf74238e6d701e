"""Every checker against answers that follow and that do not, made by hand, and the real prompt file."""

from __future__ import annotations

import json

import pytest

from finetune.evaluation.instructions import (
    INSTRUCTIONS,
    count_sentences,
    count_words,
    follows,
    follows_loosely,
    problem,
)

LEAST, LESS = "at least", "less than"
CASES = [
    # instruction, arguments, answers that follow it, answers that do not
    (
        "change_case:capital_word_frequency",
        {"capital_relation": LEAST, "capital_frequency": 2},
        ["This is VERY GOOD.", "I DID", "(NASA) and COVID-19!"],
        ["This is VERY good.", "Very Good", "12 34"],
    ),
    ("change_case:capital_word_frequency", {"capital_relation": LESS, "capital_frequency": 1}, ["none"], ["A cat"]),
    ("change_case:english_capital", {}, ["THIS IS IT, AND IT IS GOOD!"], ["This is it.", "DAS IST NICHT DIE ANTWORT."]),
    (
        "change_case:english_lowercase",
        {},
        ["this is it, and it is good!"],
        ["This is it.", "das ist nicht die antwort auf die frage.", "это не ответ", "123"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem. "},
        ["Write a poem.\nRoses", " write a poem. Here"],
        ["Sure! Write a poem.\nRoses", "Roses"],
    ),
    (
        "combination:two_responses",
        {},
        ["One\n******\nTwo", "******One******Two******"],
        ["One", "One******One", "One******Two******Three", "One******\n******Two", "One\n***\nTwo"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], from [address]", "[a][b][c]"],
        ["Dear [name]", "(a) (b)", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. I like it", "p.s. yes", "P. S. so"],
        ["Bye.", "PS: no"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S so", "P. P. S. so"], ["P.S. so", ""]),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well, My answer is maybe."],
        ["my answer is yes.", "Yes."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "```\n[1]\n```", ' "text" '],
        ["{a: 1}", 'Here: {"a": 1}', '```json\n{"a": 1}\n```\nDone', "```\n```"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\nA\nSECTION 2\nB", "SECTION1 A SECTION2 B SECTION3"],
        ["SECTION 1\nA", "Section 1 A Section 2 B", "SECTION A SECTION B"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Text\n  - a\n- b\nText", "* a\n- b\n**bold** line"],
        ["* a", "* a\n* b\n* c", "1. a\n2. b"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and **two**", "*a b* **c**"],
        ["*one*", "* one\n* two", "** ** and **"],
    ),
    ("detectable_format:title", {}, ["<<A title>>\nText", "x <<y>> z"], ["<A title>", "<<>>", "<< >>", "<<a\nb>>"]),
    (
        "keywords:existence",
        {"keywords": ["mom", "Mother"]},
        ["My MOM is a mother.", "moment, grandmother"],
        ["My mom is nice.", "mo m mother"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "roll"]},
        ["We like rocks and rolling.", "nothing"],
        ["Rock on", "a roll", "rock-n-x"],
    ),
    ("keywords:frequency", {"keyword": "war", "relation": LEAST, "frequency": 2}, ["War, warm"], ["war", "peace"]),
    ("keywords:frequency", {"keyword": "war", "relation": LESS, "frequency": 2}, ["war", "peace"], ["War and war"]),
    ("keywords:letter_frequency", {"letter": "O", "let_relation": LEAST, "let_frequency": 3}, ["OoO", "o o o"], ["oo"]),
    ("keywords:letter_frequency", {"letter": "#", "let_relation": LEAST, "let_frequency": 1}, ["#tag"], ["tag"]),
    ("keywords:letter_frequency", {"letter": "t", "let_relation": LESS, "let_frequency": 2}, ["one t"], ["two t's at"]),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist die Antwort auf Ihre Frage, und sie ist nicht lang."],
        ["This is the answer to your question, and it is not long.", "Это ответ на ваш вопрос", "42"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "summary"},
        ["One.\n\nSummary, two.", 'One.\n\n"Summary, two.', "One.\n\nSUMMARY two.\n\n"],
        [
            "One.\n\nIn summary two.",
            "Summary\n\nTwo",
            "One.\n\nSummary\n\nThree",
            "One.\nSummary",
            "One.\n\nSummary-like",
        ],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***One***Two***"],
        ["One\n\nTwo", "One\n***\n***\nTwo", "One***Two***Three"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": LESS, "num_sentences": 3},
        ["One. Two.", "Dr. Smith paid $3.50. He left."],
        ["One. Two! Three?", "He said no. She said yes. They left"],
    ),
    ("length_constraints:number_sentences", {"relation": LEAST, "num_sentences": 2}, ["One. Two"], ["One"]),
    (
        "length_constraints:number_words",
        {"relation": LEAST, "num_words": 3},
        ["one two three", "it's two"],
        ["one two"],
    ),
    ("length_constraints:number_words", {"relation": LESS, "num_words": 3}, ["one two"], ["one two three"]),
    ("punctuation:no_comma", {}, ["No comma; none."], ["One, two"]),
    (
        "startend:end_checker",
        {"end_phrase": "Is there anything else?"},
        ["Yes. Is there anything else?", 'Yes. is there anything else?"\n'],
        ["Is there anything else? No.", "Anything else?"],
    ),
    ("startend:quotation", {}, ['"All of it."', ' "a" '], ['"Not all', "'All'", '"']),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES, ids=[case[0] for case in CASES])
def test_checkers(name, arguments, good, bad):
    assert problem(name, arguments) is None
    for answer in good:
        assert follows(name, arguments, answer), answer
        assert follows_loosely(name, arguments, answer), answer
    for answer in bad:
        assert not follows(name, arguments, answer), answer
    assert not follows(name, arguments, " \n")


def test_every_checker_has_cases():
    assert {case[0] for case in CASES} == set(INSTRUCTIONS) and len(INSTRUCTIONS) == 25


def test_every_instruction_of_the_real_file_is_understood(shared):
    rows = [json.loads(line) for line in (shared / "data/ifeval.jsonl").read_text().splitlines()]
    found = [
        problem(name, arguments)
        for row in rows
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    assert len(rows) == 541 and len(found) == 834 and not any(found)
    assert {name for row in rows for name in row["instruction_id_list"]} == set(INSTRUCTIONS)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("punctuation:no_comas", {}, "no checker for 'punctuation:no_comas'"),
        ("keywords:existence", {}, "needs keywords, a list of words; it is None"),
        ("keywords:existence", {"keywords": []}, "needs keywords"),
        ("keywords:existence", {"keywords": ["a", 3]}, "a list of words"),
        ("length_constraints:number_words", {"relation": LEAST, "num_words": "3"}, "needs num_words, a whole number"),
        ("length_constraints:number_words", {"relation": "at most", "num_words": 3}, "'at least' or 'less than'"),
        ("language:response_language", {"language": "tlh"}, "'tlh' is not among the languages"),
        ("startend:end_checker", {"end_phrase": ""}, "needs end_phrase"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(name, arguments, told):
    assert told in str(problem(name, arguments))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hello there. How are you? I am fine!", 3),
        ("Dr. Smith went to Washington, D.C. in 1999. He paid $3.50.", 2),
        ("1. First point\n2. Second point", 1),
        ("1. First point.\n2. Second point.", 2),
        ("A title\n\nOne sentence. Two... and more. Three", 3),
        ("e.g. this one. Yes", 2),
        ('He said "Stop!" Then he left.', 2),
        ("Wait... What?", 2),
        ("No. It is not.", 2),
        ("**Bold.** Plain.", 2),
        ("", 0),
        ("!!!", 0),
    ],
)
def test_sentences(text, sentences):
    assert count_sentences(text) == sentences


def test_words():
    assert count_words("It's 3.5 well-made things") == 7 and count_words(" \n") == 0


def test_loosely_an_introduction_a_closing_and_markdown_do_not_matter():
    arguments = {"end_phrase": "The end."}
    for answer in ("Sure!\nIt was. **The end.**", "It was. The end.\nHope that helps", "Sure!\nThe end.\nBye"):
        assert not follows("startend:end_checker", arguments, answer)
        assert follows_loosely("startend:end_checker", arguments, answer)
    assert not follows_loosely("startend:end_checker", arguments, "Sure!\nSo:\nThe end.\nBye\nBye")
    assert not follows_loosely("punctuation:no_comma", {}, "A, b")
    assert not follows_loosely("punctuation:no_comma", {}, "")  # nothing follows nothing, with lines cut off or not
