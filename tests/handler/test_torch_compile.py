"""Options of ``torch.compile``, and optimizers whose steps go through it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import StepLR

from fitkit import ConfigurationError
from fitkit.handler.torch_compile import (
    CompiledOptimizer,
    compiled,
    is_worth_compiling,
    make_capturable_undo,
    require_compile_options,
)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Everything but the last stage, which takes long to import."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def make(cls=Adam, **options):
    return cls(nn.Linear(2, 1).parameters(), **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    "options",
    [
        True,
        False,
        {},
        {"mode": None, "options": None, "dynamic": None},
        {"mode": "reduce-overhead", "fullgraph": True, "dynamic": False},
        {"backend": "eager"},
        {"backend": lambda graph, inputs: graph, "disable": True},
        {"options": {"triton.cudagraphs": True}},
    ],
)
def test_options_that_torch_takes(options):
    require_compile_options(options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (None, "must be True, False or a dict .* received None: pass for instance"),
        (1, "received 1"),
        ("reduce-overhead", "received 'reduce-overhead'"),
        ({"fulgraph": True}, "received 'fulgraph': leave it out. Did you mean 'fullgraph'"),
        ({3: True}, "received '?3"),
        ({"mode": 1}, r"compile\['mode'\] must be a string or None.* received 1"),
        ({"dynamic": 0}, r"compile\['dynamic'\] must be a bool or None.* received 0"),
        ({"fullgraph": None}, r"compile\['fullgraph'\] must be a bool.* received None"),
        ({"disable": 1}, r"compile\['disable'\] must be a bool"),
        ({"backend": 3}, r"compile\['backend'\] must be a name or a function"),
        ({"options": [1]}, r"compile\['options'\] must be a dict or None"),
        ({"backend": "x"}, "does not take compile=.*Invalid backend: 'x'.*documents them"),
        ({"mode": "default", "options": {}}, "does not take .* Either mode or options"),
    ],
)
def test_options_that_are_refused(options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        require_compile_options(options)


def test_options_are_not_changed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, mode, options: options.clear())
    options = {"mode": None, "options": {"triton.cudagraphs": True}}
    compiled(len, options)
    assert options == {"mode": None, "options": {"triton.cudagraphs": True}}


class Mine(Adam):
    pass


@pytest.mark.parametrize(
    ("optimizer", "is_worth"),
    [
        (make(Adam), True),
        (make(AdamW), True),
        (make(RMSprop), True),
        (make(SGD), False),  # it has no flag capturable
        (make(Mine), False),
    ],
)
def test_optimizers_of_torch_with_a_capturable_flag_are_worth_it(optimizer, is_worth):
    assert is_worth_compiling(optimizer, None) is is_worth


def test_a_scheduler_needs_rates_that_are_tensors():
    for rate, is_worth in ((0.1, False), (torch.tensor(0.1), True)):
        optimizer = make(lr=rate, capturable=False, foreach=False)
        assert is_worth_compiling(optimizer, StepLR(optimizer, 1)) is is_worth


def test_of_the_options_backend_and_disable_are_used(monkeypatch):
    asked = []

    def compile_nothing(function, **options):
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    optimizer = make()
    used = {"backend": "eager", "disable": False}
    stepper = CompiledOptimizer(optimizer, {**used, "fullgraph": True, "mode": "default"})
    assert asked == [used]
    assert (stepper.optimizer, stepper.step) == (optimizer, optimizer.step)


def test_on_the_host_a_step_is_not_capturable():
    optimizer = make()
    CompiledOptimizer(optimizer, {"disable": True})
    assert optimizer.param_groups[0]["capturable"] is False


def test_undo_puts_back_the_flags_of_each_group():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = Adam([{"params": first.parameters()}, {"params": second.parameters()}])
    optimizer.param_groups[1]["capturable"] = True
    undo = make_capturable_undo(optimizer)
    for group in optimizer.param_groups:
        group["capturable"] = not group["capturable"]
    undo()
    assert [group["capturable"] for group in optimizer.param_groups] == [False, True]


def test_undo_without_flags():
    make_capturable_undo(None)()
    optimizer = make(SGD)
    make_capturable_undo(optimizer)()
    assert "capturable" not in optimizer.param_groups[0]
