import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.engine.batches import Schedule, collate, micro_batches, total_steps


class Rows:
    def __init__(self, rows):
        self.rows = [(np.array(ids), np.array(trained)) for ids, trained in rows]

    @property
    def lengths(self):
        return np.array([len(ids) for ids, _ in self.rows])

    def __len__(self):
        return len(self.rows)

    def row(self, index):
        return self.rows[index]


def test_collate_by_hand():
    data = Rows([([5, 6, 7], [0, 1, 1]), ([8, 9], [1, 1])])
    batch = collate(data, [1, 0])
    assert batch.ids_T.tolist() == [8, 9, 5, 6, 7]
    # 9 is predicted from position 0; 6 and 7 from 2 and 3; 8 opens its row, so nothing predicts it.
    assert batch.labels_N.tolist() == [9, 6, 7] and batch.predict_N.tolist() == [0, 2, 3]
    assert batch.row_N.tolist() == [0, 1, 1]
    assert batch.layout.lengths == (2, 3) and batch.rows == (1, 0) and batch.units == 3 and batch.tokens == 5


def test_collate_with_a_shared_prompt():
    data = Rows([([5, 6, 7], [0, 0, 1]), ([5, 6, 8, 9], [0, 0, 1, 1])])
    batch = collate(data, [0, 1], groups=[[0, 1]])
    assert batch.ids_T.tolist() == [5, 6, 7, 8, 9]
    # 7 and 8 are both predicted by the 6 that the rows share.
    assert batch.labels_N.tolist() == [7, 8, 9] and batch.predict_N.tolist() == [1, 1, 3]
    assert batch.row_N.tolist() == [0, 1, 1] and batch.tokens == 7


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    size=st.integers(1, 9),
    balance=st.booleans(),
)
def test_micro_batches_use_each_row_once_in_as_few_passes_as_possible(lengths, size, balance):
    rows = [100 + i for i in range(len(lengths))]
    groups = micro_batches(rows, lengths, size, balance=balance)
    assert sorted(row for group in groups for row in group) == rows
    assert len(groups) == -(-len(rows) // size) and max(map(len, groups)) <= size
    totals = [sum(lengths[row - 100] for row in group) for group in groups]
    if balance:
        assert totals == sorted(totals, reverse=True), "the largest goes first, so that memory runs out early"


def test_padded_groups_hold_like_lengths_and_ragged_groups_like_totals():
    lengths = [100, 1, 99, 2]
    assert micro_batches(range(4), lengths, 2, balance=False) == [[0, 2], [1, 3]]
    totals = [sum(lengths[row] for row in group) for group in micro_batches(range(4), lengths, 2, balance=True)]
    assert totals == [101, 101]


def test_the_schedule_is_a_function_of_the_step():
    def order(epoch):
        return np.random.default_rng(epoch).permutation(10)

    schedule = Schedule(order, 10, 4, 6)
    assert schedule.steps_per_epoch == 3
    seen = np.concatenate([schedule.rows_of(step) for step in range(3)])
    assert sorted(seen) == list(range(10))
    assert [len(schedule.rows_of(step)) for step in range(6)] == [4, 4, 2, 4, 4, 2]
    assert (schedule.rows_of(4) == order(1)[4:8]).all()


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "max_steps", "expected"),
    [
        (100, 16, 2.0, None, 14),
        (100, 10, 1.0, None, 10),
        (100, 10, 0.25, None, 3),
        (100, 10, 3.0, 7, 7),
        (1, 16, 0.01, None, 1),
    ],
)
def test_total_steps(rows, batch, epochs, max_steps, expected):
    assert total_steps(rows, batch, epochs, max_steps) == expected
