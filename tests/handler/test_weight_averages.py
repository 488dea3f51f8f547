"""Which weights are evaluated: an EMA, what the optimizer averages, or those that are trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD

from fitkit.core.types import ModelType
from fitkit.handler.parts import Parts
from fitkit.handler.weight_averages import WeightAverages


class TwoPoints(SGD):
    """Evaluates at 7, whatever it trains."""

    calls = ()

    def eval(self):
        self.calls += ("eval",)
        self._fill(7.0)

    def train(self):
        self.calls += ("train",)
        self._fill(5.0)

    def _fill(self, value):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(value)


def make(cls=TwoPoints):
    parts = Parts(nn.Linear(1, 1), {}, ModelType.REGRESSION, torch.device("cpu"))
    parts.set_optimizer(cls, {"lr": 0.1}, None)
    with torch.no_grad():
        for parameter in parts.module.parameters():
            parameter.fill_(3.0)
    return parts, WeightAverages(parts)


def value(parts):
    return {float(parameter.detach()) for parameter in parts.module.parameters()}


def test_without_an_average_nothing_is_swapped():
    parts, weights = make(SGD)
    with weights.swapped_in():
        assert value(parts) == {3.0}
    assert weights.averaged_by_optimizer() is None


def test_the_optimizer_s_average_is_swapped_in_once_and_the_bits_come_back():
    parts, weights = make()
    parts.optimizer.calls = ()
    with weights.swapped_in():
        assert value(parts) == {7.0}
        with weights.swapped_in():
            assert value(parts) == {7.0}
            saved = weights.averaged_by_optimizer()
        trained = weights.optimizer_mode.trained_weights(parts.module)
    assert parts.optimizer.calls == ("eval", "train")
    assert value(parts) == {3.0}  # not the 5 of train()
    assert {float(v) for v in saved.values()} == {7.0}
    assert {float(v) for v in trained.values()} == {3.0}


def test_an_ema_goes_before_the_optimizer_s_average():
    parts, weights = make()
    weights.start_ema(0.5)
    weights.update_ema()
    parts.optimizer.calls = ()
    with torch.no_grad():
        parts.module.weight.fill_(1.0)
    with weights.swapped_in():
        assert value(parts) == {3.0}
    assert parts.optimizer.calls == ()
    assert weights.averaged_by_optimizer() is None


def test_an_error_inside_puts_the_trained_weights_back():
    parts, weights = make()
    try:
        with weights.swapped_in():
            raise KeyError
    except KeyError:
        assert value(parts) == {3.0}
