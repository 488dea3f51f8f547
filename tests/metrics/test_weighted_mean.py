"""The mean of values weighted by samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit import CheckpointError
from fitkit.metrics.running_sum import FOLD_AFTER
from fitkit.metrics.weighted_mean import WeightedMean

COUNTS = st.integers(0, 2 * FOLD_AFTER + 3)


@given(number=COUNTS, cut=COUNTS, is_tensor=st.booleans())
def test_a_weighted_mean_is_exact_and_can_be_saved_anywhere(number, cut, is_tensor):
    plain, before, after = WeightedMean(), WeightedMean(), WeightedMean()
    values = [(weight / 7, weight) for weight in range(1, number + 1)]

    def add(mean, some):
        for value, weight in some:
            mean.add(torch.tensor(value) if is_tensor else value, weight)

    add(plain, values)
    add(before, values[:cut])
    after.load_state_dict(before.state_dict())
    add(after, values[cut:])
    total, weight = plain.sums()
    assert total.dtype is torch.float64
    assert torch.equal(after.sums()[0], total)
    assert after.sums()[1] == weight == sum(weight for _, weight in values)
    assert float(total) == pytest.approx(sum(v * w for v, w in values), rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 1.0},
        {"weight": True},
        {"weights": ["1", 2]},
        {"weights": [1]},
        {"total": torch.zeros(1)},
        {"total": torch.zeros((), dtype=torch.complex64)},
        {"total": 3.0},
        {"waiting": None},
        {"waiting": torch.zeros(2, 1)},
    ],
)
def test_sums_that_were_altered_are_refused(change):
    mean = WeightedMean()
    for _ in range(2):
        mean.add(1.0, 1)
    state = {**mean.state_dict(), **change}
    with pytest.raises(CheckpointError, match=r"sums of the epoch in the checkpoint are invalid"):
        mean.load_state_dict(state)
