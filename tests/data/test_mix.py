"""Drawing rows: everything follows from the seed and the content."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.mix import Mix, first_copies, held_out_mask, take_rows

contents = st.lists(st.integers(0, 30).map(lambda n: hashlib.sha256(str(n).encode()).digest()), max_size=80)


@given(contents, st.floats(0, 0.99), st.integers(1, 20), st.integers(0, 5))
def test_the_split_shares_no_content_and_keeps_its_bounds(
    keys: list[bytes], fraction: float, max_rows: int, seed: int
) -> None:
    mask = held_out_mask(keys, fraction, max_rows, seed)
    held = {key for key, out in zip(keys, mask, strict=True) if out}
    train = {key for key, out in zip(keys, mask, strict=True) if not out}
    assert not held & train
    assert mask.sum() <= min(max_rows, max(1, round(fraction * len(keys))))
    assert train or not keys
    if fraction == 0:
        assert not held


@given(contents, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_rows(keys: list[bytes], random: object) -> None:
    shuffled = list(keys)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = {key for key, out in zip(keys, held_out_mask(keys, 0.3, 10, 1), strict=True) if out}
    second = {key for key, out in zip(shuffled, held_out_mask(shuffled, 0.3, 10, 1), strict=True) if out}
    assert first == second


def test_the_split_holds_out_the_share_that_is_asked_for() -> None:
    keys = [hashlib.sha256(str(n).encode()).digest() for n in range(1000)]
    assert held_out_mask(keys, 0.05, 256, 1).sum() == 50
    assert held_out_mask(keys, 0.5, 256, 1).sum() == 256
    assert held_out_mask(keys[:2], 0.05, 256, 1).sum() == 1
    assert held_out_mask(keys[:1], 0.05, 256, 1).sum() == 0
    assert (held_out_mask(keys, 0.05, 256, 1) != held_out_mask(keys, 0.05, 256, 2)).any()


def test_take_is_seeded_ascending_and_without_repeats() -> None:
    taken = take_rows(100, 10, 1, "a.jsonl")
    assert len(set(taken.tolist())) == 10 and sorted(taken) == taken.tolist()
    assert take_rows(100, 10, 1, "a.jsonl").tolist() == taken.tolist()
    assert take_rows(100, 10, 2, "a.jsonl").tolist() != taken.tolist()
    assert take_rows(100, 10, 1, "b.jsonl").tolist() != taken.tolist()
    assert take_rows(3, 10, 1, "a").tolist() == take_rows(3, None, 1, "a").tolist() == [0, 1, 2]


def test_first_copies() -> None:
    assert first_copies([b"a", b"b", b"a", b"a", b"c"]).tolist() == [True, True, False, False, True]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 4)), min_size=1, max_size=4),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_mixing_counts(sources: list[tuple[int, float]], seed: int, epoch: int) -> None:
    ends = np.cumsum([rows for rows, _ in sources])
    members = tuple(np.arange(end - rows, end) for end, (rows, _) in zip(ends, sources, strict=True))
    mix = Mix(members, tuple(weight for _, weight in sources), seed)
    order = mix.order(epoch)
    counts = Counter(order.tolist())
    for rows, (size, weight), count in zip(members, sources, mix.counts(), strict=True):
        copies = [counts[int(row)] for row in rows]
        assert sum(copies) == count
        assert abs(count - weight * size) <= (1 if weight < 1 else 0.5 + 1e-9)
        # Every row as often as any other, give or take the part of a copy.
        assert all(int(weight) <= c <= int(weight) + 1 for c in copies)
        assert count > 0 or size == 0
    assert len(order) == sum(mix.counts())
    assert order.tolist() == mix.order(epoch).tolist()


def test_epochs_differ_and_half_a_source_is_whole_after_two() -> None:
    mix = Mix((np.arange(100), np.arange(100, 200)), (1.0, 0.5), seed=3)
    first, second = mix.order(0), mix.order(1)
    assert len(first) == len(second) == 150
    assert first.tolist() != second.tolist() and first.tolist() != sorted(first)
    assert set(first) | set(second) == set(range(200))
    assert Mix(mix.members, mix.weights, 4).order(0).tolist() != first.tolist()
