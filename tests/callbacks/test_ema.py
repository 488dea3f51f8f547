from __future__ import annotations

import pytest
import torch
from torch import nn

import fitkit
from fitkit import EMA, ConfigurationError

DATA = (torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.ones(12, 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Linear(2, 3), nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 1)

    def forward(self, inputs):
        return self.head(self.norm(self.body(inputs)))


def make(seed=0, model=Net):
    handler = fitkit.NNHandler(model, seed=seed)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit(handler, *callbacks, epochs=2, **options):
    options = {"batch_size": 4, "progress_bar": False, **options}
    return handler.fit(DATA, epochs=epochs, callbacks=callbacks, **options)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1, True, "0.9", None])
def test_a_decay_that_means_nothing(decay):
    with pytest.raises(ConfigurationError, match=r"must lie in \(0, 1\)"):
        EMA(decay)


class Moves(fitkit.Callback):
    """An average kept by hand."""

    order = 10

    def __init__(self, decay):
        self.decay, self.average, self.count = decay, None, 0

    def on_optimizer_step_end(self, step, logs):
        self.count += 1
        values = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.average is None:
            self.average = values
        for name, value in values.items():
            if value.is_floating_point():
                self.average[name] = self.average[name].lerp(value, 1 - self.decay)
            else:
                self.average[name] = value


def test_it_moves_once_per_optimizer_step():
    moves = Moves(0.8)
    handler = make()
    fit(handler, EMA(0.8), moves, gradient_accumulation_steps=2)
    assert moves.count == 4
    for name, value in handler.ema.weights().items():
        torch.testing.assert_close(value, moves.average[name])


def test_a_step_that_the_scaler_skips_does_not_move_it():
    handler = make()
    handler.set_loss_fn(lambda outputs, targets: outputs.sum() * 1e30)
    moves = Moves(0.8)
    fit(handler, EMA(0.8), moves, precision="fp16", epochs=1)
    assert moves.count == handler.state.optimizer_steps == 0


def test_evaluation_sees_the_average_and_training_goes_on_with_its_own():
    seen = {}

    class Looks(fitkit.Callback):
        def on_test_batch_end(self, batch, logs):
            seen["test"] = self.model.head.weight.clone()
            seen["average"] = self.handler.ema.weights()["head.weight"].clone()

        def on_epoch_end(self, epoch, logs):
            seen["after"] = self.model.head.weight.clone()

    plain, averaged = make(), make()
    fit(plain, epochs=3)
    fit(averaged, EMA(0.9), Looks(), epochs=3, validation_data=DATA)
    assert torch.equal(seen["test"], seen["average"])
    assert not torch.equal(seen["test"], seen["after"])
    for name, value in plain.module.state_dict().items():
        assert torch.equal(value, averaged.module.state_dict()[name])


def test_it_is_swapped_out_on_errors_too():
    class Fails(fitkit.Callback):
        def on_test_batch_end(self, batch, logs):
            raise RuntimeError("died")

    plain, averaged = make(), make()
    fit(plain, epochs=1)
    with pytest.raises(RuntimeError, match="died"):
        fit(averaged, EMA(0.5), Fails(), validation_data=DATA, epochs=1)
    assert torch.equal(plain.module.head.weight, averaged.module.head.weight)


def test_it_stays_after_fit_and_goes_on_in_the_next():
    handler = make()
    fit(handler, EMA(0.9))
    before = handler.ema.weights()["head.bias"].clone()
    moves = Moves(0.9)
    moves.average = {name: value.clone() for name, value in handler.ema.weights().items()}
    fit(handler, EMA(0.9), moves)
    torch.testing.assert_close(handler.ema.weights()["head.bias"], moves.average["head.bias"])
    assert not torch.equal(before, handler.ema.weights()["head.bias"])


def test_ema_decay_is_the_short_form():
    by_argument, by_callback = make(), make()
    fit(by_argument, ema_decay=0.7)
    fit(by_callback, EMA(0.7))
    for name, value in by_argument.ema.weights().items():
        assert torch.equal(value, by_callback.ema.weights()[name])
    both = make()
    fit(both, EMA(0.7), ema_decay=0.2)
    assert both.ema.decay == 0.7


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.other.weight = self.one.weight
        self.last = nn.Linear(2, 1)

    def forward(self, inputs):
        return self.last(self.other(self.one(inputs)))


@pytest.mark.parametrize("model", [Net, Tied])
def test_a_checkpoint_of_the_middle_of_validation_has_the_models_own_weights(tmp_path, model):
    class Saves(fitkit.Callback):
        own = None

        def on_train_batch_end(self, batch, logs):
            self.own = {name: v.clone() for name, v in self.model.state_dict().items()}

        def on_test_batch_end(self, batch, logs):
            self.handler.save(tmp_path / "a.pth")

    saves = Saves()
    fit(make(model=model), EMA(0.5), saves, epochs=1, validation_data=DATA)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    for name, value in saves.own.items():
        assert torch.equal(state["model_state_dict"][name], value), name
    assert not torch.equal(
        state["ema_state_dict"]["weights"]["last.bias" if model is Tied else "head.bias"],
        saves.own["last.bias" if model is Tied else "head.bias"],
    )


def test_another_decay_at_a_resume_is_the_constructors(tmp_path):
    handler = make()
    fit(handler, EMA(0.5), epochs=1)
    handler.save(tmp_path / "a.pth")
    again = make()
    fit(again, EMA(0.9), epochs=1, resume=tmp_path / "a.pth")
    assert again.ema.decay == 0.9
    for name, value in handler.ema.weights().items():
        assert torch.equal(value, again.ema.weights()[name])
