"""What people preferred, from the page to the stages that learn from it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from chat_lab import Lab, walk_in
from serve_lab import Running
from stage_recipes import train

from finetune.chat.model import ChatModel
from finetune.chat.preferences import Given, append_row, count_preferences, keep_preference, ties_file
from finetune.errors import DiskFullError, InputError
from finetune.shapes import Message

ASKED = [Message("user", "What is 3?")]
LEFT, RIGHT = Given("plain", "It is Rome."), Given("base", "No é\u2028🦙.")
ANSWERS = [{"model": "plain", "text": LEFT.text}, {"model": "base", "text": RIGHT.text}]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n")[:-1]]


def sent(**changes) -> dict:
    asked = [{"role": "user", "content": "What is 3?"}]
    return {"messages": asked, "answers": ANSWERS, "verdict": "left", "blind": True, "temperature": 0.7, **changes}


@pytest.fixture
def own(chat: ChatModel, tmp_path: Path):
    running = Running(chat, tmp_path / "kept.jsonl")
    yield running
    running.server.stop()


def test_the_better_answer_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    assert keep_preference(path, ASKED, LEFT, RIGHT, "left", {"blind": False}) == path
    keep_preference(path, [Message("system", "Be."), *ASKED], LEFT, RIGHT, "right", {})
    first, second = rows(path)
    assert first == {
        "prompt": [{"role": "user", "content": "What is 3?"}],
        "chosen": [{"role": "assistant", "content": LEFT.text}],
        "rejected": [{"role": "assistant", "content": RIGHT.text}],
        "chosen_model": "plain",
        "rejected_model": "base",
        "blind": False,
    }
    assert second["chosen"][0]["content"] == RIGHT.text and second["chosen_model"] == "base"
    assert second["prompt"][0] == {"role": "system", "content": "Be."}
    assert count_preferences(path) == {"pairs": 2, "tie": 0, "both_bad": 0}


def test_ties_are_kept_beside_the_pairs(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    for verdict in ("tie", "both_bad", "tie"):
        assert keep_preference(path, ASKED, LEFT, LEFT, verdict, {}) == tmp_path / "p.ties.jsonl" == ties_file(path)
    assert not path.exists()
    assert rows(ties_file(path))[0]["answers"] == [{"model": "plain", "text": LEFT.text}] * 2
    ties_file(path).open("a").write("not ours\n")
    assert count_preferences(path) == {"pairs": 0, "tie": 2, "both_bad": 1}


@pytest.mark.parametrize(
    ("asked", "left", "right", "why"),
    [
        (ASKED, LEFT, Given("base", " It  is Rome.\n"), "the same but for white space"),
        (ASKED, LEFT, Given("base", " \n"), "one of the answers is empty"),
        ([], LEFT, RIGHT, "needs a question"),
        ([*ASKED, Message("assistant", "It")], LEFT, RIGHT, "needs a question"),
    ],
)
def test_what_is_no_comparison_is_not_kept(tmp_path: Path, asked, left, right, why: str) -> None:
    with pytest.raises(InputError, match=why):
        keep_preference(tmp_path / "p.jsonl", asked, left, right, "left", {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_its_last_newline_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"a": 1}')
    append_row(path, {"b": "é"})
    assert path.read_text(encoding="utf-8") == '{"a": 1}\n{"b": "é"}\n'


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    append_row(path, {"a": 1})
    write = os.write

    def full(handle: int, content: bytes) -> int:
        if len(content) > 10:
            return write(handle, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFullError, match="the row was not kept"):
        append_row(path, {"b": "2" * 3})
    monkeypatch.undo()
    assert path.read_text() == '{"a": 1}\n'
    with pytest.raises(InputError, match="No such file or directory; give another file"):
        append_row(tmp_path / "none" / "p.jsonl", {})


def test_rows_of_many_writers_stay_whole(tmp_path: Path) -> None:
    """Threads of this process, and another process."""
    path = tmp_path / "p.jsonl"
    code = (
        "import sys; from pathlib import Path; from finetune.chat.preferences import append_row\n"
        "for i in range(100): append_row(Path(sys.argv[1]), {'who': 'other', 'text': 'x' * 9000})"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)])
    threads = [
        threading.Thread(target=lambda: [append_row(path, {"who": "own", "text": "y" * 9000}) for _ in range(50)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(60) == 0
    found = [row["who"] for row in rows(path)]
    assert found.count("own") == 150 and found.count("other") == 100


def test_the_page_sends_what_was_preferred(own: Running) -> None:
    status, _, body = own.ask("POST", "/finetune/preferences", sent())
    assert status == 200 and body["kept"] == {"pairs": 1, "tie": 0, "both_bad": 0}
    own.ask("POST", "/finetune/preferences", sent(verdict="tie"))
    (row,) = rows(own.served.pairs)
    assert row["blind"] is True and row["temperature"] == 0.7 and row["rejected_model"] == "base"
    about = own.ask("GET", "/finetune/about")[2]
    assert about["kept"] == {"pairs": 1, "tie": 1, "both_bad": 0} and about["models"] == ["letters", "plain", "base"]


def test_the_recipes_system_prompt_is_part_of_what_was_asked(own: Running, chat: ChatModel) -> None:
    chat.system = "Be brief."
    try:
        own.ask("POST", "/finetune/preferences", sent())
        given = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "What is 3?"}]
        own.ask("POST", "/finetune/preferences", sent(messages=given))
    finally:
        chat.system = None
    assert [row["prompt"][0]["content"] for row in rows(own.served.pairs)] == ["Be brief.", "Be long."]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verdict": "both"}, "verdict should be one of left, right, tie, both_bad"),
        ({"answers": ANSWERS[:1]}, "two objects with model and text"),
        ({"answers": [ANSWERS[0], {"model": "gpt-9", "text": "x"}]}, "two objects with model and text"),
        ({"answers": [ANSWERS[0], {"model": "base", "text": "\ud800"}]}, "half of a pair"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "half of a pair"),
        ({"answers": [ANSWERS[0], ANSWERS[0]]}, "the same but for white space"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "needs a question"),
    ],
)
def test_what_the_page_never_sends(own: Running, changes: dict, words: str) -> None:
    status, _, body = own.ask("POST", "/finetune/preferences", sent(**changes))
    assert status == 400 and words in body["error"]["message"]
    assert not own.served.pairs.exists() and own.ask("POST", "/finetune/preferences", raw=b"[]")[0] == 400


def test_reward_and_dpo_stages_learn_from_it(own: Running, lab: Lab, tmp_path: Path, capfd) -> None:
    from finetune.cli.main import main

    for index in range(6):
        turns = [{"role": "user", "content": f"What is {index}?"}]
        if index % 2:
            said = [{"role": "assistant", "content": "It is so."}, {"role": "user", "content": "And now?"}]
            turns = [{"role": "system", "content": "Be brief."}, *turns, *said]
        verdict = ("left", "right")[index // 3]
        assert own.ask("POST", "/finetune/preferences", sent(messages=turns, verdict=verdict))[0] == 200
    own.ask("POST", "/finetune/preferences", sent(verdict="both_bad"))
    data = {"data": [{"path": "kept.jsonl"}], "held_out": {"fraction": 0.0}, "train": train(max_steps=1)}
    stages = {"helpful": {"kind": "reward", **data}, "dpo": {"kind": "dpo", **data}}
    found = walk_in(tmp_path, lab.base, stages)
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    told = capfd.readouterr().out
    assert told.count("format pairs (detected)") == 2
    for stage in stages:
        manifest = json.loads((found.runs[stage] / "manifest.json").read_text())
        assert manifest["data"]["train_rows"] == 6 and not manifest["data"]["dropped"]
