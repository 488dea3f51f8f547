"""Reading and setting the learning rate of a parameter group."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from fitkit import ConfigurationError, LearningRateMonitor, NNHandler
from fitkit.callbacks.support.learning_rate import (
    current_value,
    require_optimizer,
    scale_schedule,
    set_learning_rate,
)


def test_a_callback_without_an_optimizer_is_told_what_to_call():
    callback = LearningRateMonitor()
    callback.handler = NNHandler(nn.Linear, in_features=1, out_features=1)
    with pytest.raises(ConfigurationError, match=r"LearningRateMonitor works on .*set_optimizer"):
        require_optimizer(callback)
    callback.handler.set_optimizer(torch.optim.SGD, lr=0.1)
    require_optimizer(callback)


@pytest.mark.parametrize("value", [0.0, 1e-12, 3])
def test_a_plain_rate_is_replaced(value):
    group = {"lr": 0.5, "momentum": 0.9}
    set_learning_rate(group, value)
    assert group == {"lr": value, "momentum": 0.9}


def test_a_tensor_keeps_its_place_and_type():
    rate = torch.tensor(0.5, dtype=torch.float64)
    group = {"lr": rate}
    set_learning_rate(group, 0.1)
    assert group["lr"] is rate
    assert (rate.dtype, rate.item()) == (torch.float64, 0.1)


def test_the_optimizer_steps_with_the_tensor_that_was_set():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=torch.tensor(0.5))
    set_learning_rate(optimizer.param_groups[0], 0.25)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == -0.25


def test_a_value_that_was_read_survives_the_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    before = current_value(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
    assert before == 0.5
    assert torch.isclose(current_value(optimizer.param_groups[0]["lr"]), torch.tensor(0.05))


@pytest.mark.parametrize("setting", [0.5, None, (0.9, 0.999), True])
def test_settings_that_cannot_change_in_place_are_given_as_they_are(setting):
    assert current_value(setting) is setting


def reduced(cls, steps=3, **arguments):
    """Rates of a schedule that is halved after some steps, and those of one that is not."""
    found = []
    for factor in (0.5, 1.0):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5, momentum=0.9)
        scheduler = cls(optimizer, **arguments)
        rates = []
        for step in range(8):
            optimizer.step()
            scheduler.step()
            if step == steps:
                group = optimizer.param_groups[0]
                set_learning_rate(group, group["lr"] * factor)
                scale_schedule(scheduler, optimizer.param_groups, [factor])
            rates.append(optimizer.param_groups[0]["lr"])
        found.append(rates)
    return found


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 1 / (1 + step)}),
        (lr_scheduler.OneCycleLR, {"max_lr": 1.0, "total_steps": 9}),
        (lr_scheduler.CyclicLR, {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3}),
        (lr_scheduler.CosineAnnealingWarmRestarts, {"T_0": 3}),
        (lr_scheduler.ExponentialLR, {"gamma": 0.9}),
        (lr_scheduler.LinearLR, {"total_iters": 6}),
    ],
)
def test_a_reduction_lasts_under_each_schedule(cls, arguments):
    halved, whole = reduced(cls, **arguments)
    assert halved[:3] == whole[:3]
    assert halved[3:] == pytest.approx([rate / 2 for rate in whole[3:]])


def test_a_reduction_lasts_under_a_composed_schedule():
    def compose(optimizer):
        parts = [
            lr_scheduler.LinearLR(optimizer, total_iters=2),
            lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])

    halved, whole = reduced(compose)
    assert halved[3:] == pytest.approx([rate / 2 for rate in whole[3:]])
    scale_schedule(None, [{"lr": 1.0}], [0.5])
