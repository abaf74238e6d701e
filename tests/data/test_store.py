"""The token store: views without copies, and a cache that is either right or not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.data.store import TokenRows, cache_key, load_or_make, pack

ROWS = [([1, 5, 6, 2], [0, 0, 1, 1]), ([1, 7], [1, 1]), ([1, 8, 9], [0, 0, 0])]


def contents(rows: TokenRows) -> list[tuple[list[int], list[int]]]:
    return [tuple(part.tolist() for part in rows.row(i)) for i in range(len(rows))]  # type: ignore[misc]


def fail() -> TokenRows:
    raise AssertionError("the cache was not used")


def test_pack_and_select() -> None:
    rows = pack(ROWS)
    assert contents(rows) == ROWS
    assert rows.lengths.tolist() == [4, 2, 3]
    assert rows.trained_counts.tolist() == [2, 1, 0]  # a row's first token is never learnt
    chosen = rows.select(np.array([2, 0]))
    assert contents(chosen) == [ROWS[2], ROWS[0]]
    assert chosen.origin.tolist() == [2, 0]
    assert np.shares_memory(chosen.row(1)[0], rows.ids)
    assert len(pack([])) == 0


def test_cut_ends_with_an_answer() -> None:
    rows = pack([([1, 2, 3, 4, 5, 6], [0, 1, 1, 0, 0, 1]), ([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 1]), ([1, 2], [0, 1])])
    cut = rows.cut(5)
    assert contents(cut) == [([1, 2, 3], [0, 1, 1]), ([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]), ([1, 2], [0, 1])]
    assert cut.trained_counts.tolist() == [2, 0, 1]


def test_the_cache_gives_back_what_was_made(tmp_path: Path) -> None:
    said: list[str] = []
    made = load_or_make(tmp_path / "c", "k" * 64, lambda: pack(ROWS), said.append)
    found = load_or_make(tmp_path / "c", "k" * 64, fail, said.append)
    assert contents(made) == contents(found) == ROWS
    assert isinstance(found.ids, np.memmap)
    assert said == ["tokens: 3 distinct rows found in the cache"]
    assert [path.name for path in (tmp_path / "c").iterdir()] == [f"tokens-{'k' * 32}"]


@pytest.mark.parametrize("name", ["ids.npy", "trained.npy", "lengths.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    key = "k" * 64
    load_or_make(tmp_path, key, lambda: pack(ROWS), print)
    path = tmp_path / f"tokens-{key[:32]}" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        path.write_bytes({"flip": flipped, "cut": content[:-5], "empty": b""}[damage])
    assert contents(load_or_make(tmp_path, key, lambda: pack(ROWS), print)) == ROWS
    assert contents(load_or_make(tmp_path, key, fail, print)) == ROWS


def test_another_key_with_the_same_beginning_is_not_found(tmp_path: Path) -> None:
    load_or_make(tmp_path, "k" * 64, lambda: pack(ROWS), print)
    assert len(load_or_make(tmp_path, "k" * 63 + "x", lambda: pack(ROWS[:1]), print)) == 1


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    assert contents(load_or_make(tmp_path / "file" / "c", "k" * 64, lambda: pack(ROWS), said.append)) == ROWS
    assert "not cached" in said[0]


def test_keys_do_not_run_together() -> None:
    assert cache_key(["ab", "c"]) != cache_key(["a", "bc"])
    assert cache_key(["ab"]) == cache_key([b"ab"])
