"""Gradients are cleared: those of the optimizer after its step, others before the next window."""

from __future__ import annotations

import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.engine.clear_gradients import LeftoverGradients, clear_gradients


def model_with_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    return model


def have_gradients(module):
    return [parameter.grad is not None for parameter in module.parameters()]


def test_an_optimizer_clears_its_own():
    model = model_with_gradients()
    clear_gradients(torch.optim.SGD(model[1].parameters(), lr=0.1))
    assert have_gradients(model) == [True, True, False, False]


def test_an_overridden_zero_grad_is_called():
    calls = []

    class Own(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            calls.append(set_to_none)

    model = model_with_gradients()
    clear_gradients(Own(model.parameters(), lr=0.1))
    assert calls == [True]
    assert all(have_gradients(model))


def test_those_that_no_step_clears_are_dropped_before_each_window():
    model = model_with_gradients()
    leftovers = LeftoverGradients(
        torch.optim.SGD(model[1].parameters(), lr=0.1), TrainedModules(model)
    )
    for _ in range(2):
        leftovers.drop()
        assert have_gradients(model[0]) == [False, False]
        model(torch.ones(1, 2)).sum().backward()


def test_parameters_that_are_added_to_the_optimizer_are_left_to_it():
    model = model_with_gradients()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    leftovers = LeftoverGradients(optimizer, TrainedModules(model))
    leftovers.drop()
    optimizer.add_param_group({"params": model[0].parameters()})
    model(torch.ones(1, 2)).sum().backward()
    leftovers.drop()
    assert not any(have_gradients(model)), "gradients of before do not count in the first window"
    model(torch.ones(1, 2)).sum().backward()
    leftovers.drop()
    assert all(have_gradients(model))


def test_without_an_optimizer_all_are_dropped():
    model = model_with_gradients()
    LeftoverGradients(None, TrainedModules(model)).drop()
    assert not any(have_gradients(model))
