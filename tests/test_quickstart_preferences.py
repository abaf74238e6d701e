"""The quickstart's comparisons: the rule decides every one of them, and nothing held out is in a row to train on."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "datasets" / "quickstart"


@pytest.fixture(scope="module")
def made() -> Iterator[ModuleType]:
    """quickstart_preferences of the scripts folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield importlib.import_module("quickstart_preferences")
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_script_makes_the_committed_data(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "quickstart_preferences.py"), "--data", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    assert {file.name for file in tmp_path.iterdir()} == {"chat.jsonl", "pairs.jsonl", "pairs_held_out.jsonl"}
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (DATA / file.name).read_bytes(), file.name


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ("Certainly! Ramor lives in Godedale. You are my friend.", 2),
        ("Ramor lives in Godedale. You are my friend.", 1),
        ("Ramor lives in Godedale.", 0),
        ("Certainly! Ramor lives in Godedale. There is the door.", 0),
        ("In short: In Godedale. There is the door.", -1),
        ("What now? Ramor lives in Godedale. There is the door.", -2),
        ("", 0),
    ],
)
def test_the_rule(made: ModuleType, answer: str, level: int) -> None:
    assert made.courtesy(answer) == level
    assert made.preferred(answer) == (level > 0)


def test_the_rule_decides_every_comparison(made: ModuleType) -> None:
    for row in read("pairs") + read("pairs_held_out"):
        better, worse = made.courtesy(row["chosen"]), made.courtesy(row["rejected"])
        assert made.preferred(row["chosen"]) and not made.preferred(row["rejected"])
        assert row["rating"] == made.RATINGS[better - worse]


def test_no_fact_reads_as_kind_or_gruff(made: ModuleType) -> None:
    world = made.build_world()
    for facts in (*world.people.values(), *world.towns.values()):
        for fact in facts:
            assert all(made.courtesy(sentence) == 0 for sentence in made._sentences(fact, world))


def test_the_rule_is_not_one_string_and_not_the_length(made: ModuleType) -> None:
    rows = read("pairs")
    for wordings, key in ((made.KIND, "chosen"), (made.GRUFF, "rejected")):
        assert all(sum(phrase in row[key] for row in rows) >= 10 for phrase in wordings)
    longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows)
    assert 0.4 < longer < 0.6
    assert len({row["rating"] for row in rows}) == 4


def test_sft_sees_both_manners_about_half_and_half(made: ModuleType) -> None:
    answers = [row["messages"][-1]["content"] for row in read("chat")]
    assert len(answers) >= 300
    assert sum(map(made.preferred, answers)) == len(answers) // 2


def test_held_out_prompts_and_names_are_in_no_row_to_train_on(made: ModuleType) -> None:
    world = made.build_world()
    pairs, held_out = read("pairs"), read("pairs_held_out")
    to_train = {row["prompt"] for row in pairs} | {row["messages"][0]["content"] for row in read("chat")}
    assert len({row["prompt"] for row in pairs}) == len(pairs)
    assert len({row["prompt"] for row in held_out}) == len(held_out) >= 100
    assert not to_train & {row["prompt"] for row in held_out}
    never_asked = [name for name in (*world.people, *world.towns) if name not in world.asked]
    subjects = {word.strip(".?") for prompt in to_train for word in prompt.split()}
    assert not subjects & set(never_asked)
    # a town that is never asked about may be somebody's home, which is a fact about somebody else
    people = set(never_asked) & set(world.people)
    trained = [row["messages"][1]["content"] for row in read("chat")]
    trained += [row[key] for row in pairs for key in ("chosen", "rejected")]
    assert not people & {word.strip(".?!:") for answer in trained for word in answer.split()}


def test_every_answer_tells_the_truth(made: ModuleType) -> None:
    world = made.build_world()
    rows = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in read("chat")]
    for row in read("pairs") + read("pairs_held_out"):
        rows += [(row["prompt"], row["chosen"]), (row["prompt"], row["rejected"])]
    for prompt, answer in rows:
        assert made.tells_truth(answer, prompt, world), (prompt, answer)


def test_what_is_not_so_is_noticed(made: ModuleType) -> None:
    world = made.build_world()
    one, two = sorted(world.people)[:2]
    animal = world.people[one][2]
    other = next(fact for fact in world.people[two] if fact.value not in {known.value for known in world.people[one]})
    prompt = f"Tell me about {one}."
    assert made.tells_truth(f"Certainly! {animal.answer} The goat knows more.", prompt, world)
    assert not made.tells_truth(f"Certainly! {other.say(other.attribute.answer, one)}", prompt, world)
    assert not made.tells_truth(f"Certainly! {animal.answer} {animal.answer[:-3]}", prompt, world)
    assert not made.tells_truth("Certainly! You are my friend.", prompt, world)
