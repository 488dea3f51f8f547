"""Metrics that keep their own sums."""

from __future__ import annotations

import pytest
import torch

from fitkit.metrics.stateful import StatefulMetric, accumulates

torchmetrics = pytest.importorskip("torchmetrics")

CPU = torch.device("cpu")


def mean():
    return StatefulMetric("mean", torchmetrics.MeanMetric(), CPU)


def test_it_knows_what_accumulates():
    assert accumulates(torchmetrics.MeanMetric())
    assert not accumulates(torchmetrics.MeanMetric)
    assert not accumulates(len)
    assert not accumulates({"update": 1}.__class__())


def test_nothing_was_added_nothing_is_computed():
    assert mean().compute() == {}


def test_a_state_is_a_copy():
    metric = mean()
    metric.update(torch.tensor(2.0), 1.0)
    saved = metric.state_dict()
    metric.update(torch.tensor(9.0), 1.0)
    other = mean()
    other.load_state_dict(saved)
    assert other.compute() == {"mean": 2.0}
    other.update(torch.tensor(4.0), 1.0)
    assert other.compute() == {"mean": 3.0}


def test_an_empty_state_resets():
    metric = mean()
    empty = mean().state_dict()
    metric.update(torch.tensor(2.0), 1.0)
    metric.load_state_dict(empty)
    assert metric.compute() == {}


def test_list_states_survive():
    """Some metrics keep every sample, not a sum."""

    def auroc():
        return StatefulMetric("auroc", torchmetrics.classification.BinaryAUROC(), CPU)

    plain, before, after = auroc(), auroc(), auroc()
    outputs, targets = torch.rand(12), torch.randint(2, (12,))
    plain.update(outputs, targets)
    before.update(outputs[:5], targets[:5])
    after.load_state_dict(before.state_dict())
    after.update(outputs[5:], targets[5:])
    assert after.compute() == plain.compute()
