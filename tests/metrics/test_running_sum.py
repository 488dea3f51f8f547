"""The sum of rows: the same bits whenever it is read or saved."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit.metrics.running_sum import FOLD_AFTER, RunningSum, is_real, weighted_sum

COUNTS = st.integers(0, 3 * FOLD_AFTER)


def rows_of(number):
    generator = torch.Generator().manual_seed(number)
    return list(torch.randn(number, generator=generator))


@given(number=COUNTS, at_once=st.booleans(), reads=st.sets(COUNTS))
def test_reading_the_sum_changes_no_bit(number, at_once, reads):
    plain, read, rows = RunningSum(at_once=at_once), RunningSum(at_once=at_once), rows_of(number)
    for index, row in enumerate(rows):
        plain.add(row)
        read.add(row)
        if index in reads:
            read.total()
    if not rows:
        assert plain.total() is None
        return
    assert torch.equal(plain.total(), read.total())
    assert float(plain.total()) == pytest.approx(math.fsum(map(float, rows)), abs=1e-9)


@given(number=COUNTS, at_once=st.booleans(), cut=COUNTS)
def test_a_sum_that_was_saved_goes_on_with_the_same_bits(number, at_once, cut):
    plain, before, after = (RunningSum(weighted_sum, at_once=at_once) for _ in range(3))
    rows = list(enumerate(rows_of(number), 1))
    for weight, row in rows:
        plain.add(row, weight)
    for weight, row in rows[:cut]:
        before.add(row, weight)
    after.load(before.added(), before.waiting(), before.weights)
    for weight, row in rows[cut:]:
        after.add(row, weight)
    if not rows:
        assert after.total() is None
        return
    assert torch.equal(after.total(), plain.total())
    exact = math.fsum(weight * float(row) for weight, row in rows)
    assert float(after.total()) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("number", [0, 1, FOLD_AFTER - 1, FOLD_AFTER, FOLD_AFTER + 1])
def test_a_block_is_added_when_it_is_full(number):
    total = RunningSum(at_once=False)
    for _ in range(number):
        total.add(torch.ones(2, dtype=torch.float32))
    waiting = number % FOLD_AFTER
    assert len(total.weights) == waiting
    assert (total.waiting() is None) is (waiting == 0)
    assert (total.added() is None) is (number < FOLD_AFTER)
    if number:
        assert total.total().dtype is torch.float64
        assert total.total().tolist() == [number, number]


def test_rows_are_added_at_once_where_that_was_asked_for():
    total = RunningSum(at_once=True)
    total.add(torch.ones(2))
    assert (total.weights, total.waiting()) == ([], None)
    assert total.added().tolist() == [1.0, 1.0]


def test_restored_rows_are_added_before_a_new_one():
    """Those of a device without float64, on one that has it."""
    total = RunningSum(at_once=True)
    total.load(None, torch.tensor([1.0, 2.0]))
    assert total.weights == [1, 1]
    total.add(torch.tensor(3.0))
    assert total.added().tolist() == 6.0
    assert total.weights == []


def test_numbers_and_tensors_can_be_mixed():
    total = RunningSum(weighted_sum, at_once=False)
    for value, weight in ((1, 2), (torch.tensor(3.0), 4), (0.5, 1)):
        total.add(value, weight)
    assert total.total().item() == 14.5


def test_a_loaded_sum_is_not_changed_by_later_rows():
    saved = torch.ones((), dtype=torch.float64)
    total = RunningSum(at_once=True)
    total.load(saved, None)
    total.add(torch.tensor(1.0))
    assert (saved.item(), total.total().item()) == (1.0, 2.0)


@given(pairs=st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=1))
def test_a_weighted_sum(pairs):
    values = torch.tensor([float(value) for value, _ in pairs], dtype=torch.float64)
    weights = [weight for _, weight in pairs]
    assert weighted_sum(values, weights).item() == sum(v * w for v, w in pairs)


@pytest.mark.parametrize(
    ("value", "ndim", "expected"),
    [
        (torch.ones(2), 1, True),
        (torch.ones(2), 0, False),
        (torch.ones((), dtype=torch.int64), 0, True),
        (torch.ones(2, dtype=torch.complex64), 1, False),
        (torch.eye(2).to_sparse(), 2, False),
        (1.0, 0, False),
        (None, 0, False),
    ],
)
def test_which_values_are_real_tensors(value, ndim, expected):
    assert is_real(value, ndim=ndim) is expected
