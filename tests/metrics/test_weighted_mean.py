"""The mean of values weighted by samples."""

from __future__ import annotations

import fractions
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fitkit import CheckpointError, DataError
from fitkit.core.tree import map_tensors
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
        {"weight": -1},
        {"weight": True},
        {"weight": math.nan},
        {"weights": [1, -0.5]},
        {"num_batches": 2.0},
        {"pairs": {"total": torch.zeros(3), "waiting": None}},
        {"pairs": {"total": None, "waiting": torch.zeros(2)}},
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


def exact_mean(pairs):
    """The weighted mean in exact arithmetic."""
    pairs = [(fractions.Fraction(value), fractions.Fraction(weight)) for value, weight in pairs]
    return float(sum(v * w for v, w in pairs) / sum(w for _, w in pairs))


WEIGHTS = st.one_of(st.integers(0, 5000), st.floats(0, 1e4), st.just(0.0))
PAIRS = st.lists(st.tuples(st.floats(-1e3, 1e3), WEIGHTS), max_size=FOLD_AFTER + 9)
PLACES = ("number", "host", "device")


def placed(number, place):
    if place == "number":
        return number
    kind = torch.float64 if isinstance(number, float) else torch.int64
    return torch.tensor(number, dtype=kind, device="sim" if place == "device" else "cpu")


def value_of(mean):
    vector, numbers = mean.packed()
    packed = torch.cat([vector.cpu(), torch.tensor(numbers, dtype=torch.float64)])
    return WeightedMean.value_of(packed)


@pytest.mark.parametrize("accelerator", ["float64"], indirect=True)
@given(pairs=PAIRS, cut=COUNTS, places=st.lists(st.sampled_from(PLACES), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_weights_of_any_kind(accelerator, pairs, cut, places):
    """Numbers and tensors, mixed; a value of weight 0 may be NaN; saved in between."""
    plain, before, after = WeightedMean(), WeightedMean(), WeightedMean()

    def add(mean, start, stop):
        for index in range(start, min(stop, len(pairs))):
            value, weight = pairs[index]
            place = places[index % len(places)]
            value = torch.tensor(value if weight else math.nan, dtype=torch.float64)
            mean.add(value.to("sim"), placed(weight, place))

    add(plain, 0, len(pairs))
    add(before, 0, cut)
    state = before.state_dict()
    after.load_state_dict(map_tensors(lambda one: one.cpu(), state))
    add(after, cut, len(pairs))
    value, again = value_of(plain), value_of(after)
    if not pairs:
        assert value is again is None
    elif not any(weight for _, weight in pairs):
        assert math.isnan(value)
        assert math.isnan(again)
    else:
        assert again == value == pytest.approx(exact_mean(pairs), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("accelerator", ["float64", "no float64"], indirect=True)
def test_a_weight_on_a_device_is_not_read(accelerator):
    mean = WeightedMean()
    values = [torch.tensor(float(value), device="sim") for value in range(FOLD_AFTER - 1)]
    weights = [torch.tensor(value % 3, device="sim") for value in range(FOLD_AFTER - 1)]
    accelerator.waits.clear()
    for value, weight in zip(values, weights, strict=True):
        mean.add(value, weight)
    assert accelerator.waits == []
    expected = exact_mean([(value, value % 3) for value in range(FOLD_AFTER - 1)])
    assert value_of(mean) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("accelerator", ["float64"], indirect=True)
def test_a_negative_weight_on_a_device_makes_the_mean_nan(accelerator):
    mean = WeightedMean()
    mean.add(torch.tensor(1.0), torch.tensor(3, device="sim"))
    mean.add(torch.tensor(1.0), torch.tensor(-1, device="sim"))
    assert math.isnan(value_of(mean))


@pytest.mark.parametrize(
    "weight", [-1, -0.5, math.nan, math.inf, "3", None, torch.ones(2), torch.tensor(-1), 1j]
)
def test_weights_that_are_refused(weight):
    with pytest.raises(DataError, match="weight of a batch must be one finite number of at least"):
        WeightedMean().add(1.0, weight)


def test_a_state_of_fitkit_0_2_is_loaded():
    state = {
        "total": torch.tensor(6.0, dtype=torch.float64),
        "weight": 3,
        "waiting": torch.tensor([2.0, 4.0]),
        "weights": [1, 2],
    }
    mean = WeightedMean()
    mean.load_state_dict(state)
    mean.add(10.0, 4)
    assert value_of(mean) == 56.0 / 10
    mean.load_state_dict({"total": None, "weight": 0, "waiting": None, "weights": []})
    assert value_of(mean) is None
