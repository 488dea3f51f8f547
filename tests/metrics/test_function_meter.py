"""Means of a metric function, and their states."""

from __future__ import annotations

import pytest
import torch

from fitkit import CheckpointError
from fitkit.metrics.function_meter import FunctionMeter
from fitkit.metrics.weighted_mean import WeightedMean


def meter(function):
    asked = []
    one = FunctionMeter("m", function, lambda metric, name: asked.append((metric, name)))
    return one, asked


def means_of(one):
    return {name: float(mean.sums()[0] / mean.sums()[1]) for name, mean in one.means.items()}


def test_a_number_is_one_mean_and_asks_for_its_name_once():
    one, asked = meter(lambda outputs, targets: outputs.mean())
    assert set(one.measure(torch.ones(2), None, 2)) == {"m"}
    one.measure(torch.full((6,), 5.0), None, 6)
    assert means_of(one) == {"m": 4.0}
    assert asked == [("m", "m")]
    assert set(one.state_dict()) >= WeightedMean.STATE_KEYS  # as in files of fitkit 0.2
    one.reset()
    assert one.means == {}


def test_entries_are_saved_by_name():
    one, _ = meter(lambda outputs, targets: outputs)
    other, asked = meter(lambda outputs, targets: outputs)
    one.measure(torch.tensor([1.0, 3.0]), None, 2)
    other.load_state_dict(one.state_dict())
    assert asked == [("m", "m_0"), ("m", "m_1")]
    for each in (one, other):
        each.measure(torch.tensor([4.0, 0.0]), None, 1)
        assert means_of(each) == {"m_0": 2.0, "m_1": 2.0}


def test_an_altered_state_is_refused():
    one, _ = meter(len)
    mean = {**WeightedMean().state_dict(), "weight": -1}
    for state in (mean, {"entries": {"m_a": mean}}):
        with pytest.raises(CheckpointError, match="sums of the epoch in the checkpoint"):
            one.load_state_dict(state)
