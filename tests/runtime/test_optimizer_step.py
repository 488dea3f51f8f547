"""A step without torch's label is the same step, and has the label and the hooks where one sees."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from fitkit.runtime.optimizer_step import take_step

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "differentiable": lambda p: torch.optim.SGD(p, lr=0.1, differentiable=False),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def with_gradients(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model.parameters()


def labels_of(optimizer):
    """What torch's profiler says of a step."""
    with torch.profiler.profile(acc_events=True) as found:
        take_step(optimizer)
    return [event.key for event in found.key_averages()]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_the_optimizer_s_step(kind, model):
    other = copy.deepcopy(model)
    first = OPTIMIZERS[kind](with_gradients(model))
    second = OPTIMIZERS[kind](with_gradients(other))
    for _ in range(3):
        take_step(first)
        second.step()
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert parameter.requires_grad
    assert torch.is_grad_enabled()


def test_the_label_is_there_only_for_a_profiler(model, monkeypatch):
    optimizer, entered = OPTIMIZERS["SGD"](with_gradients(model)), []
    own = torch.autograd.profiler.record_function
    monkeypatch.setattr(
        torch.autograd.profiler,
        "record_function",
        lambda name, *args: (entered.append(name), own(name, *args))[1],
    )
    take_step(optimizer)
    assert entered == []
    assert "Optimizer.step#SGD.step" in labels_of(optimizer)
    assert entered == ["Optimizer.step#SGD.step"]


@pytest.mark.parametrize("where", ["pre", "post", "global pre", "global post"])
def test_hooks_are_called(where, model):
    optimizer, called = OPTIMIZERS["SGD"](with_gradients(model)), []
    register = {
        "pre": optimizer.register_step_pre_hook,
        "post": optimizer.register_step_post_hook,
        "global pre": torch_optimizer.register_optimizer_step_pre_hook,
        "global post": torch_optimizer.register_optimizer_step_post_hook,
    }[where]
    handle = register(lambda *_: called.append(where))
    take_step(optimizer)
    handle.remove()
    take_step(optimizer)
    assert called == [where]


def test_a_scheduler_hears_of_each_step(model):
    optimizer = OPTIMIZERS["SGD"](with_gradients(model))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    take_step(optimizer)
    scheduler.step()  # else it warns, which is an error
    assert optimizer._opt_called


def test_a_step_that_is_replaced_or_overridden_is_called(model):
    called = []

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            called.append("own")
            return super().step(closure)

    optimizer = Own(with_gradients(model), lr=0.1)
    take_step(optimizer)
    optimizer.step = lambda: called.append("replaced")
    take_step(optimizer)
    take_step(SimpleNamespace(step=lambda: called.append("compiled")))
    assert called == ["own", "replaced", "compiled"]
