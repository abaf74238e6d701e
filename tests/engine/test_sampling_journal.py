"""The journal: whole chunks only, whatever a kill left behind."""

from __future__ import annotations

import pytest

from finetune.engine.sampling_journal import FILE, has_chunks, open_journal
from finetune.errors import CheckpointError

HEADER = {"fingerprint": "abc", "chunks": 3}


def test_chunks_are_found_again(tmp_path):
    journal = open_journal(tmp_path / "work", HEADER)
    assert journal.done == 0 and list(journal.read()) == [] and not has_chunks(tmp_path / "work")
    journal.append({"text": "ä\u2028\n", "score": 0.1 + 0.2})
    journal.append({"text": "b"})
    again = open_journal(tmp_path / "work", HEADER)
    assert again.done == 2 and has_chunks(tmp_path / "work")
    assert list(again.read()) == [{"text": "ä\u2028\n", "score": 0.1 + 0.2}, {"text": "b"}]


@pytest.mark.parametrize("left", [b"", b"{", b'{"text": "c"', b'{"text": "c"}'])
def test_what_a_kill_cut_short_is_cut_off(tmp_path, left):
    open_journal(tmp_path, HEADER).append({"text": "a"})
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + left)
    journal = open_journal(tmp_path, HEADER)
    assert journal.done == 1 and path.read_bytes() == whole
    journal.append({"text": "d"})
    assert [chunk["text"] for chunk in journal.read()] == ["a", "d"]


@pytest.mark.parametrize("header", [b"", b'{"fing'])
def test_killed_before_the_first_line_was_whole(tmp_path, header):
    (tmp_path / FILE).write_bytes(header)
    assert not has_chunks(tmp_path)
    journal = open_journal(tmp_path, HEADER)
    journal.append({"a": 1})
    assert open_journal(tmp_path, HEADER).done == 1


def test_no_journal(tmp_path):
    assert not has_chunks(tmp_path)


def test_damage_and_other_settings_are_refused(tmp_path):
    open_journal(tmp_path, HEADER).append({"a": 1})
    with pytest.raises(CheckpointError, match="other settings"):
        open_journal(tmp_path, {**HEADER, "chunks": 4})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b'{"a"', b'{"a'))
    with pytest.raises(CheckpointError, match=r"journal\.jsonl:2 is damaged"):
        open_journal(tmp_path, HEADER)
