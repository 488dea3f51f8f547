"""Gradients in evaluation: none by default, on request, and never left in parameters."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import fitkit
from fitkit import NNHandler, StepOutput


def fit(handler, data, **options):
    return handler.fit(data, **{"progress_bar": False, "batch_size": 2, **options})


class Energy(nn.Module):
    """Forces: the negative gradient of an energy; ``asks``: the model itself turns autograd on."""

    def __init__(self, *, asks=False):
        super().__init__()
        self.asks = asks
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x):
        with torch.set_grad_enabled(self.asks or torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            energy = self.net(x).sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.fixture
def forces(make_handler, make_data):
    def make(**options):
        torch.manual_seed(2)
        return make_handler(Energy(**options)), (make_data(6)[0], torch.zeros(6, 3).double())

    return make


@pytest.mark.parametrize(("asks", "options"), [(True, {}), (False, {"grad": True})])
def test_a_model_that_differentiates_is_evaluated_and_predicts(forces, asks, options):
    handler, data = forces(asks=asks)
    found = fit(handler, data, validation_data=data, **options).history["val_loss"][-1]
    own = handler.module.train(False)
    expected = own(data[0]).square().mean().item()
    assert found == pytest.approx(expected, rel=1e-12)
    assert handler.evaluate(data, **options)["loss"] == pytest.approx(expected, rel=1e-12)
    predicted = handler.predict(data[0], **options)
    assert not predicted.requires_grad  # else the graph of every batch would stay
    assert torch.allclose(predicted, own(data[0]).detach(), rtol=1e-12)


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_without_gradients_the_error_says_what_to_pass(forces, verb):
    handler, data = forces()
    calls = {"fit": lambda: fit(handler, data, validation_data=data)}
    call = calls.get(verb, lambda: getattr(handler, verb)(data))
    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        call()
    assert any("pass grad=True" in note for note in caught.value.__notes__)


def test_a_loss_that_differentiates(make_handler, make_data):
    def penalized(outputs, targets):
        (slope,) = torch.autograd.grad(outputs.sum(), handler.module.weight, create_graph=True)
        return nn.functional.mse_loss(outputs, targets) + slope.square().sum()

    handler, (x, y) = make_handler(loss=penalized), make_data(4)
    found = handler.evaluate((x, y), grad=True)["loss"]
    outputs = handler.module(x).detach()
    expected = nn.functional.mse_loss(outputs, y) + x.sum(0).square().sum()
    assert found == pytest.approx(float(expected), rel=1e-12)


def adversarial(handler, batch):
    """The loss at inputs that were moved along the sign of its gradient, by ``backward``."""
    x, y = batch
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        nn.functional.mse_loss(handler.model(x), y).backward()
    return StepOutput(nn.functional.mse_loss(handler.model(x + 0.1 * x.grad.sign()), y))


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_left_in_the_gradients_of_parameters(make_handler, make_data, grad):
    def plain(handler, batch):
        return nn.functional.mse_loss(handler.model(batch[0]), batch[1])

    data, runs = make_data(8), []
    for validation in (None, make_data(4, seed=2)):
        handler = make_handler(optimizer=torch.optim.AdamW)
        handler.set_train_step(plain, adversarial)
        runs.append(fit(handler, data, validation_data=validation, epochs=3, grad=grad).history)
        assert all(p.grad is None for p in handler.module.parameters())
    assert runs[0]["loss"] == runs[1]["loss"]


def test_an_evaluation_inside_a_window_keeps_its_gradients(make_handler, make_data):
    class Evaluates(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            before = [p.grad for p in self.handler.module.parameters()]
            self.handler.evaluate(make_data(4, seed=3), grad=True)
            after = [p.grad for p in self.handler.module.parameters()]
            assert all(a is b for a, b in zip(before, after, strict=True))
            self.seen = [*getattr(self, "seen", []), before[0] is not None]

    runs = []
    for callbacks in ([], [Evaluates()]):
        handler = make_handler()
        handler.set_train_step(
            lambda handler, batch: nn.functional.mse_loss(handler.model(batch[0]), batch[1]),
            adversarial,
        )
        options = {"gradient_accumulation_steps": 3, "callbacks": callbacks}
        runs.append(fit(handler, make_data(8), epochs=2, **options).history)
    assert callbacks[0].seen == [True, True, False, False] * 2
    assert runs[0] == runs[1]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_the_graph_of_a_batch_is_gone_before_the_next(make_handler, make_data, verb):
    alive, graphs = [], []

    class Token:
        """Lives as long as the graph that has a hook with it."""

    class Watches(nn.Linear):
        def forward(self, x):
            gc.collect()
            alive.append(sum(reference() is not None for reference in graphs))
            hidden = x + 0.0 * self.weight.sum()
            token = Token()
            graphs.append(weakref.ref(token))
            hidden.register_hook(lambda gradient, token=token: gradient)
            return super().forward(hidden)

    handler = make_handler(Watches(3, 1, dtype=torch.float64))
    getattr(handler, verb)(make_data(8), batch_size=2, grad=True)
    assert alive == [0, 0, 0, 0]
    gc.collect()
    assert not any(reference() for reference in graphs)


def test_what_a_model_caches_in_validation_is_used_in_training(make_data):
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 1, dtype=torch.float64)
            self.table = None

        def forward(self, x):
            if self.table is None or len(self.table) < len(x):
                self.table = torch.arange(len(x), dtype=x.dtype).cos()
            return self.layer(x) * self.table[: len(x), None]

    handler = NNHandler(Caches, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_val_loader([make_data(5)])
    history = handler.fit([make_data(3)], epochs=3, progress_bar=False)
    assert len(history.history["val_loss"]) == 3
    handler.predict([make_data(7)[0]])
    handler.fit([make_data(6)], progress_bar=False)
