"""Gradients are cleared: those of the optimizer after its step, others before each batch."""

from __future__ import annotations

import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.engine.clear_gradients import OptimizedParameters, clear_gradients


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


def test_those_that_no_step_clears_are_dropped_before_each_batch():
    model = model_with_gradients()
    optimized = OptimizedParameters(
        torch.optim.SGD(model[1].parameters(), lr=0.1), TrainedModules(model)
    )
    for _ in range(2):
        optimized.drop_other_gradients()
        assert have_gradients(model[0]) == [False, False]
        model(torch.ones(1, 2)).sum().backward()


def test_parameters_that_are_added_to_the_optimizer_are_left_to_it():
    model = model_with_gradients()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    optimized = OptimizedParameters(optimizer, TrainedModules(model))
    optimized.drop_other_gradients()
    optimizer.add_param_group({"params": model[0].parameters()})
    model(torch.ones(1, 2)).sum().backward()
    optimized.drop_other_gradients()
    assert have_gradients(model) == [False, False, True, True], "those of before do not count"
    model(torch.ones(1, 2)).sum().backward()
    optimized.drop_other_gradients()
    assert all(have_gradients(model))


def test_without_an_optimizer_all_are_dropped():
    model = model_with_gradients()
    OptimizedParameters(None, TrainedModules(model)).drop_other_gradients()
    assert not any(have_gradients(model))


def test_parameters_are_those_of_the_optimizer_in_the_order_of_the_model():
    model = model_with_gradients()
    optimizer = torch.optim.SGD(list(model[1].parameters())[::-1], lr=0.1)
    optimized = OptimizedParameters(optimizer, TrainedModules(model))
    assert list(map(id, optimized.parameters())) == list(map(id, model[1].parameters()))
    optimizer.add_param_group({"params": [model[0].bias]})
    assert list(map(id, optimized.parameters())) == list(
        map(id, [model[0].bias, *model[1].parameters()])
    )
    assert model[0].bias.grad is None, "that of the last batch"


def test_gradients_of_a_restored_window_are_kept():
    model = model_with_gradients()
    OptimizedParameters(
        torch.optim.SGD(model.parameters(), lr=0.1), TrainedModules(model)
    ).drop_other_gradients()
    assert all(have_gradients(model))
