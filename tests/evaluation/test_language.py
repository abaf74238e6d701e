"""A few sentences in each language that the prompts of IFEval ask for, and in their neighbours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.evaluation.language import LANGUAGES, is_in

SAID = json.loads((Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", SAID)
def test_a_language_is_told_from_all_others(language):
    taken_for = [name for name in SAID if is_in(SAID[language], name)]
    assert taken_for == [language]
    assert is_in(SAID[language].upper(), language)


def test_the_languages_of_the_real_prompts_are_known(shared):
    asked = set()
    for line in (shared / "data/ifeval.jsonl").read_text().splitlines():
        asked |= {arguments["language"] for arguments in json.loads(line)["kwargs"] if "language" in arguments}
    assert len(asked) == 22 and asked <= LANGUAGES and asked <= set(SAID)


def test_limits():
    assert is_in("Yes", "en") and is_in("Yes", "de")  # too little to tell
    assert not is_in("42!", "en") and not is_in("", "en")  # no letters
    assert not is_in("Yes, \u0434\u0430 \u0434\u0430 \u0434\u0430", "en")  # most letters are of another script
    assert is_in('{"answer": "' + SAID["de"] + '"}', "de")
