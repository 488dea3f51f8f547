"""The batches of one optimizer step, weighted by what the mean of their loss is over."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import CheckpointError
from fitkit.engine.accumulation_window import AccumulationWindow

WEIGHTS = st.lists(st.integers(1, 50) | st.floats(0.1, 50.0), min_size=1, max_size=6)


def factors_of(window, weights, size, num_ranks=1, totals=None):
    """The factors of the losses, after the correction at the end."""
    totals = weights if totals is None else totals
    factors = []
    for index, (weight, total) in enumerate(zip(weights, totals, strict=True)):
        factor, is_full = window.join(
            weight,
            total,
            samples=3,
            size=size,
            num_ranks=num_ranks,
            is_last=index + 1 == len(weights),
        )
        assert is_full is (index + 1 == len(weights))
        factors.append(float(factor))
    correction = window.correction()
    return [f * (1.0 if correction is None else float(correction)) for f in factors]


@given(weights=WEIGHTS)
def test_each_batch_counts_by_its_share_of_the_weight(weights):
    expected = [weight / sum(weights) for weight in weights]
    assert factors_of(AccumulationWindow(), weights, len(weights)) == pytest.approx(expected)
    on_device = [torch.tensor(weight, dtype=torch.float64) for weight in weights]
    assert factors_of(AccumulationWindow(), on_device, len(weights)) == pytest.approx(expected)


@given(weights=WEIGHTS, size=st.integers(2, 9))
def test_a_window_that_ends_early_is_a_mean_of_what_it_holds(weights, size):
    weights = weights[:size]
    expected = [weight / sum(weights) for weight in weights]
    assert factors_of(AccumulationWindow(), weights, size) == pytest.approx(expected)


@given(weights=WEIGHTS, others=st.integers(0, 9))
def test_the_mean_over_ranks_is_that_over_all_weight(weights, others):
    totals = [weight + others for weight in weights]
    expected = [2 * weight / sum(totals) for weight in weights]
    found = factors_of(AccumulationWindow(), weights, len(weights), 2, totals)
    assert found == pytest.approx(expected)


def test_a_single_batch_needs_no_factor():
    window = AccumulationWindow()
    weight = torch.tensor(7.0)
    options = {"samples": 3, "size": 1, "num_ranks": 1, "is_last": False}
    assert window.join(weight, weight, **options) == (1.0, True)
    assert window.correction() is None
    assert window.batches == 0


def test_no_weight_on_the_device_gives_gradients_of_zero():
    window = AccumulationWindow()
    options = {"samples": 3, "size": 2, "num_ranks": 1, "is_last": False}
    for _ in range(2):
        factor, is_full = window.join(torch.tensor(0.0), torch.tensor(0.0), **options)
        assert factor == 0
    assert is_full
    assert window.correction() == 0.0


def test_a_batch_whose_weight_is_told_later_counts_as_one_whose_weight_is_known():
    window = AccumulationWindow()
    window.last_weight = 8
    options = {"samples": 0, "size": 1, "num_ranks": 2, "is_last": False}
    assert window.join(4, None, **options) == (1.0, True)
    window.weigh(8.0)
    assert window.correction() is None
    window.close()
    factor, _ = window.join(3, None, **options)
    window.weigh(5.0)
    assert factor * window.correction() == pytest.approx(2 * 3 / 5)
    window.close()
    again = AccumulationWindow()
    again.load_state_dict(window.state_dict({}), {})
    alone = copy.copy(again)
    assert again.join(3, None, **options) == window.join(3, None, **options) == (6 / 5, True)
    assert alone.join(3, 3, **{**options, "num_ranks": 1}) == (1.0, True)
    assert alone.correction() is None


def test_a_batch_without_weight_does_not_change_what_is_expected_of_the_next():
    window = AccumulationWindow()
    window.last_weight = 8
    window.weigh(0.0)
    assert window.last_weight == 8


def test_nothing_is_expected_after_a_window_of_several_batches():
    window = AccumulationWindow()
    window.last_weight = 8
    window.join(4, 8, samples=8, size=2, num_ranks=2, is_last=False)
    assert window.last_weight == 0


def gradients_of(parameters):
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("weight", [3, 2.5, torch.tensor(3.0)])
def test_an_open_window_goes_on(weight):
    layer = nn.Linear(1, 1)
    layer.weight.grad = torch.ones(1, 1)
    parameters = dict(layer.named_parameters())
    window, again = AccumulationWindow(), AccumulationWindow()
    options = {"samples": 3, "size": 3, "num_ranks": 1, "is_last": False}
    window.join(weight, weight, **options)
    state = window.state_dict(gradients_of(parameters))
    assert all(type(state[name]) in (int, float) for name in ("batches", "samples", "expected"))
    state["gradients"] = {name: value.clone() for name, value in state["gradients"].items()}
    layer.weight.grad = layer.bias.grad = None
    again.load_state_dict(state, parameters)
    assert layer.weight.grad == 1.0
    assert layer.bias.grad is None
    for one in (window, again):
        one.join(weight, weight, **options)
    assert window.state_dict({}) == again.state_dict({})
    window.close()
    layer.weight.grad = None
    assert window.state_dict(gradients_of(parameters)) == {}


@pytest.mark.parametrize("name", ["batches", "samples", "expected"])
@pytest.mark.parametrize("value", [-1, "2", None, float("nan"), float("inf"), True])
def test_counts_that_cannot_be(name, value):
    state = {"batches": 1, "samples": 3, "expected": 6, "gradients": {}, name: value}
    with pytest.raises(CheckpointError, match="must have counts of at least 0"):
        AccumulationWindow().load_state_dict(state, {})
