"""Gradients are the bits of ``loss.backward()``, and whoever replaces a part of it is asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fitkit.runtime import backward
from fitkit.runtime.backward import run_backward


class Loss(Tensor):
    """A loss with a method of its own."""

    def backward(self, *args, **kwargs):
        self.was_called = True
        return super().backward(*args, **kwargs)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def gradients_by(run, model, make_loss):
    for parameter in model.parameters():
        parameter.grad = None
    run(make_loss(model))
    return [parameter.grad for parameter in model.parameters()]


LOSSES = {
    "mean": lambda model: model(torch.ones(4, 5)).mean(),
    "class": lambda model: nn.functional.cross_entropy(
        model(torch.arange(20.0).reshape(4, 5)), torch.tensor([0, 1, 2, 0])
    ),
    "double": lambda model: model(torch.ones(4, 5)).double().sum(),
    "half": lambda model: model(torch.ones(4, 5)).bfloat16().sum(),
    "one element, with dimensions": lambda model: model(torch.ones(1, 5))[:, :1],
    "a parameter's part": lambda model: next(model.parameters())[0, 0],
}


@pytest.fixture
def counted(monkeypatch):
    """How often torch's engine was called directly."""
    calls, own = [], backward._ENGINE
    monkeypatch.setattr(backward, "_ENGINE", lambda *a, **k: (calls.append(1), own(*a, **k))[1])
    return calls


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("is_known", [True, False])
def test_gradients_are_the_same_bits(model, kind, is_known, monkeypatch):
    expected = gradients_by(Tensor.backward, model, LOSSES[kind])
    if not is_known:
        monkeypatch.setattr(backward, "_ENGINE", None)
    found = gradients_by(run_backward, model, LOSSES[kind])
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_a_usual_loss_takes_the_short_way(model, counted):
    gradients_by(run_backward, model, LOSSES["class"])
    assert len(counted) == 1


def test_gradients_add_up(model):
    once = gradients_by(run_backward, model, LOSSES["class"])
    doubled = [2 * one for one in once]
    run_backward(LOSSES["class"](model))
    for parameter, expected in zip(model.parameters(), doubled, strict=True):
        assert torch.equal(parameter.grad, expected)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_pass_may_start_from_further_tensors(model, is_known, monkeypatch):
    expected = gradients_by(Tensor.backward, model, LOSSES["class"])
    if not is_known:
        monkeypatch.setattr(backward, "_ENGINE", None)
    parameter, gradient = torch.zeros(2, requires_grad=True), torch.tensor([3.0, 4.0])
    run = lambda loss: run_backward(loss, (parameter.view_as(parameter), gradient))  # noqa: E731
    found = gradients_by(run, model, LOSSES["class"])
    assert all(map(torch.equal, found, expected))
    assert torch.equal(parameter.grad, gradient)
    assert parameter.grad is not gradient


def test_a_loss_that_is_a_leaf_has_a_gradient_of_its_own():
    first, second = (torch.tensor(2.0, requires_grad=True) for _ in range(2))
    run_backward(first), run_backward(second)
    first.grad.mul_(3)
    assert float(second.grad) == 1


def test_hooks_see_and_may_change_the_gradient(model):
    def with_hook(model):
        loss = LOSSES["class"](model)
        loss.register_hook(lambda gradient: gradient.mul_(2))
        return loss

    once = gradients_by(run_backward, model, LOSSES["class"])
    for one, expected in zip(gradients_by(run_backward, model, with_hook), once, strict=True):
        assert torch.equal(one, 2 * expected)
    again = gradients_by(run_backward, model, LOSSES["class"])
    assert all(map(torch.equal, again, once))


def test_a_loss_of_a_class_of_its_own_is_asked(model, counted):
    loss = LOSSES["class"](model).as_subclass(Loss)
    run_backward(loss)
    assert loss.was_called
    assert counted == []


@pytest.mark.parametrize("owner", [Tensor, torch.autograd])
def test_a_replaced_backward_is_called(model, owner, monkeypatch, counted):
    calls, own = [], owner.backward
    monkeypatch.setattr(owner, "backward", lambda *a, **k: (calls.append(1), own(*a, **k))[1])
    run_backward(LOSSES["class"](model))
    assert len(calls) == 1
    assert counted == []


def test_a_mode_that_sees_every_function_sees_it(model, counted):
    seen = []

    class See(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    loss = LOSSES["class"](model)
    with See():
        run_backward(loss)
    assert "backward" in seen
    assert counted == []


def test_errors_are_torch_s(model):
    for make in (
        lambda: torch.ones(()),
        lambda: torch.ones(2, requires_grad=True) * 2,
        lambda: _used(LOSSES["class"](model)),
        lambda: torch.ones((), requires_grad=True).to(torch.complex64),
    ):
        messages = []
        for run in (Tensor.backward, run_backward):
            with pytest.raises(RuntimeError) as caught:
                run(make())
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def _used(loss):
    loss.backward()
    return loss


@pytest.mark.filterwarnings("ignore:(Anomaly Detection|Error detected):UserWarning")
def test_anomalies_are_detected():
    bad = torch.zeros((), requires_grad=True)
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="returned nan"):
        run_backward(bad.sqrt() * 0)
