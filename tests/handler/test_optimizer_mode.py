"""Optimizers with two modes: what was scored is what is saved, and training is not disturbed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import fitkit
from fitkit import NNHandler
from fitkit.checkpointing.read_weights import read_weights
from fitkit.testing import assert_resumes_exactly, differences

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()
HELD_OUT = X[:9], Y[:9]


class ScheduleFreeSGD(Optimizer):
    """Gradients at ``y = (1 - beta) z + beta x``; ``x``, the mean of all ``z``, is evaluated."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def _move(self, *, to_average):
        for group in self.param_groups:
            if group["train_mode"] is to_average:
                weight = 1 - 1 / group["beta"] if to_average else 1 - group["beta"]
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.data.lerp_(self.state[p]["z"], weight)
                group["train_mode"] = not to_average

    def eval(self):
        self._move(to_average=True)

    def train(self):
        self._move(to_average=False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "a step in evaluation mode"
            group["k"] += 1
            c, beta = 1 / group["k"], group["beta"]
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, c)
                p.add_(p.grad, alpha=group["lr"] * (beta * (1 - c) - 1))
                z.sub_(p.grad, alpha=group["lr"])


class OwnFlag(ScheduleFreeSGD):
    """Has its mode in an attribute, which is no part of its state."""

    is_training = False

    def _move(self, *, to_average):
        for group in self.param_groups:
            group["train_mode"] = self.is_training
        super()._move(to_average=to_average)
        self.is_training = not to_average
        for group in self.param_groups:
            group["train_mode"] = True  # says nothing


class Model(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))
        self.double()


class Line(nn.Linear):
    def __init__(self):
        super().__init__(3, 1, dtype=torch.float64)


def make(cls=ScheduleFreeSGD, model=Model):
    handler = NNHandler(model, "cpu", seed=0)
    handler.set_optimizer(cls, lr=0.3)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_train_loader((X, Y), batch_size=8)
    handler.set_val_loader(HELD_OUT, batch_size=4)
    return handler


def train(handler, epochs=3, **options):
    return handler.fit(epochs=epochs, progress_bar=False, **options)


def scored(weights, model=Model):
    module = model().eval()
    module.load_state_dict(weights)
    return nn.functional.mse_loss(module(HELD_OUT[0]), HELD_OUT[1]).item()


BOTH = pytest.mark.parametrize("cls", [ScheduleFreeSGD, OwnFlag])


@BOTH
def test_validation_scores_the_average_as_plain_torch_does(cls):
    handler = make(cls, Line)
    handler.set_train_loader((X, Y), batch_size=8, shuffle=False)
    module = copy.deepcopy(handler.module)
    optimizer = cls(module.parameters(), lr=0.3)
    expected = []
    for _ in range(3):
        optimizer.train()
        for first in (0, 8, 16):
            optimizer.zero_grad()
            part = slice(first, first + 8)
            nn.functional.mse_loss(module(X[part]), Y[part]).backward()
            optimizer.step()
        trained = [p.detach().clone() for p in module.parameters()]
        optimizer.eval()
        expected.append(nn.functional.mse_loss(module(HELD_OUT[0]), HELD_OUT[1]).item())
        optimizer.train()
    history = train(handler).history
    assert history["val_loss"] == pytest.approx(expected, rel=1e-9)
    for found, value in zip(handler.module.parameters(), trained, strict=True):
        assert torch.allclose(found, value, rtol=1e-9)
    assert handler.evaluate()["loss"] == pytest.approx(expected[-1], rel=1e-9)
    optimizer.eval()
    assert torch.allclose(handler.predict(X), module(X), rtol=1e-9)


@BOTH
def test_evaluation_changes_no_bit_of_training(cls, tmp_path):
    class Disturbs(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            self.handler.evaluate()
            self.handler.predict(X)
            self.handler.weights.evaluated()
            self.handler.get_state_dict()

    plain, disturbed = make(cls), make(cls)
    plain.parts.validation_data = {}
    train(plain)
    saver = fitkit.ModelCheckpoint(tmp_path / "w{epoch}.pth", save_weights_only=True)
    train(disturbed, callbacks=[Disturbs(), saver])
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, disturbed.module.state_dict()[name]), name
    for one, other in zip(
        plain.optimizer.state_dict()["state"].values(),
        disturbed.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert torch.equal(one["z"], other["z"])


@BOTH
def test_saved_weights_are_those_that_were_scored(cls, tmp_path):
    handler = make(cls)
    savers = [
        fitkit.ModelCheckpoint(
            tmp_path / f"{name}{{epoch}}.pth", save_weights_only=name == "w", background=background
        )
        for name, background in (("w", False), ("f", False), ("b", True))
    ]
    savers[2].save_weights_only = savers[2].saves_weights_only = True
    history = train(handler, callbacks=savers).history
    for epoch, loss in enumerate(history["val_loss"], start=1):
        for name in "wfb":  # also for those who read only the weights of a whole checkpoint
            weights = read_weights(tmp_path / f"{name}{epoch}.pth")
            assert scored(weights) == pytest.approx(loss, rel=1e-9), (name, epoch)
        loaded = NNHandler.load(tmp_path / f"f{epoch}.pth", "cpu", model_class=Model)
        assert loaded.evaluate(HELD_OUT)["loss"] == pytest.approx(loss, rel=1e-9)
    trained = read_weights(tmp_path / "f3.pth", averaged=False)
    assert all(torch.equal(v, handler.module.state_dict()[n]) for n, v in trained.items())
    other = NNHandler.initialize_from_checkpoint(tmp_path / "f3.pth", Model, device="cpu")
    other.set_loss_fn(nn.MSELoss())
    assert other.evaluate(HELD_OUT)["loss"] == pytest.approx(loss, rel=1e-9)


@BOTH
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}], ids=str)
def test_a_run_goes_on_exactly(cls, options):
    def callbacks():
        return [
            fitkit.EarlyStopping(patience=9, restore_best_weights=True),
            fitkit.ModelCheckpoint("w.pth", save_best_only=True, save_weights_only=True),
        ]

    def build():
        return make(cls)

    labels = assert_resumes_exactly(build, make_callbacks=callbacks, epochs=2, **options)
    assert any("on_test_batch_end" in label for label in labels)


@BOTH
def test_a_checkpoint_of_validation_holds_the_training_state(cls):
    handler, states = make(cls), []
    train(
        handler,
        epochs=1,
        callbacks=[
            fitkit.LambdaCallback(
                on_test_begin=lambda logs: states.append(copy.deepcopy(handler.get_state_dict()))
            )
        ],
    )
    (state,) = states
    assert all(group["train_mode"] for group in state["optimizer_state_dict"]["param_groups"])
    assert not state["optimizer_is_evaluating"]
    for name, value in handler.module.state_dict().items():
        assert torch.equal(state["model_state_dict"][name], value), name


@BOTH
@pytest.mark.filterwarnings("ignore:the checkpoint holds the state of callbacks")
def test_best_weights_are_evaluated_as_they_are(cls, tmp_path):
    class Worse(fitkit.Callback):
        """The third epoch spoils the weights."""

        def on_epoch_begin(self, epoch, logs):
            if epoch == 2:
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        parameter.add_(1.0)

    handler, best = make(cls), fitkit.EarlyStopping(patience=9, restore_best_weights=True)
    history = train(handler, callbacks=[Worse(), best]).history
    assert best.best_epoch < 2
    assert best.best == min(history["val_loss"]) < history["val_loss"][-1]
    for _ in range(2):
        assert handler.evaluate()["loss"] == pytest.approx(best.best, rel=1e-12)
    assert scored(handler.module.state_dict()) == pytest.approx(best.best, rel=1e-9)
    handler.save(tmp_path / "saved.pth")
    assert scored(read_weights(tmp_path / "saved.pth")) == pytest.approx(best.best, rel=1e-9)
    loaded = NNHandler.load(tmp_path / "saved.pth", "cpu", model_class=Model)
    assert loaded.evaluate(HELD_OUT)["loss"] == pytest.approx(best.best, rel=1e-12)
    loaded.set_train_loader((X, Y), batch_size=8)
    loaded.set_val_loader(HELD_OUT, batch_size=4)
    runs = [train(one, epochs=1).history for one in (handler, loaded)]
    assert runs[0] == runs[1]


def test_after_an_interrupt_a_checkpoint_has_the_trained_weights(tmp_path):
    class Interrupts(fitkit.Callback):
        def on_train_batch_end(self, batch, logs):
            if self.handler.state.global_step == 7:
                raise KeyboardInterrupt

    def callbacks():
        return [fitkit.EarlyStopping(patience=9, restore_best_weights=True)]

    whole, handler = make(), make()
    train(whole, callbacks=callbacks())
    train(handler, callbacks=[*callbacks(), Interrupts()])
    handler.save(tmp_path / "saved.pth")
    again = make()
    train(again, callbacks=callbacks(), resume=tmp_path / "saved.pth")
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    train(handler, callbacks=callbacks(), resume=tmp_path / "saved.pth")
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, handler.module.state_dict()[name]), name


def test_an_optimizer_with_one_mode_is_left_alone():
    handler = make(torch.optim.SGD)
    mode = handler.weights.optimizer_mode
    train(handler, epochs=1)
    state = handler.get_state_dict()
    assert not mode.switches
    assert state["evaluated_state_dict"] is None
    assert state["optimizer_is_evaluating"] is False
    with mode.evaluating():
        assert state["model_state_dict"].keys() == handler.module.state_dict().keys()


@BOTH
def test_lazy_parameters_have_no_values_yet(cls):
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(1, dtype=torch.float64)

        def forward(self, x):
            return self.layer(x)

    handler = make(cls, Lazy)
    first = handler.evaluate()["loss"]
    assert first == handler.evaluate()["loss"]
    train(handler, epochs=1)
    assert handler.evaluate()["loss"] < first


def test_options_that_a_callback_changes_in_validation_stay():
    class Changes(fitkit.Callback):
        def on_test_begin(self, logs):
            self.handler.optimizer.param_groups[0]["lr"] = 0.05

    handler = make()
    train(handler, epochs=1, callbacks=[Changes()])
    assert handler.optimizer.param_groups[0]["lr"] == 0.05


@BOTH
def test_a_dry_run_and_a_sweep_leave_the_handler_as_it_was(cls):
    handler = make(cls)
    train(handler, epochs=1)
    before = copy.deepcopy(handler.get_state_dict())
    handler.fit(fast_dev_run=True, progress_bar=False)
    handler.find_learning_rate(num_steps=5)
    assert not list(differences(before, handler.get_state_dict()))
    plain = make(cls)
    train(plain, epochs=2)
    train(handler, epochs=1)
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, handler.module.state_dict()[name]), name


def test_schedule_free_optimizers_of_their_package():
    schedulefree = pytest.importorskip("schedulefree")
    for cls in (schedulefree.SGDScheduleFree, schedulefree.AdamWScheduleFree):
        handler = make(cls)
        history = train(handler).history
        assert scored(handler.weights.evaluated()) == pytest.approx(history["val_loss"][-1])
        assert_resumes_exactly(lambda cls=cls: make(cls), epochs=2, every=4)
