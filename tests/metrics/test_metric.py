"""What may be a metric, and under which name."""

from __future__ import annotations

import pytest
import torch

from fitkit import Accuracy, ConfigurationError, MeanMetric
from fitkit.metrics.metric import as_scalar, is_reserved, require_metric


@pytest.mark.parametrize("name", ["loss", "lr", "epoch", "val_x", "val_loss"])
def test_names_that_fitkit_logs_are_reserved(name):
    assert is_reserved(name)
    with pytest.raises(ConfigurationError, match=f"'{name}' clashes.*choose another"):
        require_metric(name, Accuracy(), taken=())


def test_a_name_is_used_once():
    with pytest.raises(ConfigurationError, match="'a' was already added: choose another name"):
        require_metric("a", Accuracy(), taken={"a": 1})


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_is_a_string(name):
    with pytest.raises(ConfigurationError, match="must be a non-empty string"):
        require_metric(name, Accuracy(), taken=())


def test_a_class_is_no_metric():
    with pytest.raises(ConfigurationError, match="is the class Accuracy: pass an instance"):
        require_metric("a", Accuracy, taken=())


@pytest.mark.parametrize("metric", [None, 0.5, "accuracy", [Accuracy()]])
def test_what_cannot_be_called_is_no_metric(metric):
    with pytest.raises(ConfigurationError, match=r"must be a function .* received"):
        require_metric("a", metric, taken=())


def test_a_mean_metric_averages_whatever_its_values_are():
    class Squares(MeanMetric):
        def values(self, outputs, targets):
            return outputs**2

    sums = Squares().update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), None)
    assert sums.tolist() == [30.0, 4.0]
    assert Squares().compute(sums) == 7.5


def test_a_scalar_is_detached():
    value = as_scalar("a", torch.ones(1, requires_grad=True))
    assert value.shape == ()
    assert not value.requires_grad
