"""``evaluate`` and ``predict``: which callbacks hear them, and what ranks put together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import Callback, DataError, NNHandler
from fitkit.distributed.world import World
from fitkit.training.evaluate import PassOptions, evaluate, predict

X = torch.arange(10.0).reshape(5, 2)
DATA = (X, torch.zeros(5, 1))


class Hears(Callback):
    def __init__(self, heard):
        self.heard = heard

    def on_test_end(self, logs):
        self.heard.append((self, self.handler, dict(logs)))

    def on_predict_end(self, logs):
        self.heard.append((self, self.handler, dict(logs)))


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    handler.set_loss_fn(nn.MSELoss())
    handler.add_metric("mean", lambda outputs, targets: outputs.mean())
    return handler


def run(function, handler, data=DATA, size=2, steps=None, callbacks=()):
    return function(handler, data, PassOptions(size, steps=steps, callbacks=callbacks))


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_each_sample_counts_once_for_any_batch_size(handler, size):
    outputs = handler.module(X).detach()
    values = run(evaluate, handler, size=size)
    assert list(values) == ["loss", "mean"]
    assert values["loss"] == pytest.approx(float(outputs.square().mean()), rel=1e-6)
    assert values["mean"] == pytest.approx(float(outputs.mean()), rel=1e-6)
    torch.testing.assert_close(run(predict, handler, size=size), outputs)


def test_predictions_are_in_the_order_of_data_that_would_be_shuffled(handler):
    handler.set_val_loader(DATA, batch_size=2, shuffle=True)
    torch.testing.assert_close(
        run(predict, handler, data=None, size=None), handler.module(X).detach()
    )


@pytest.mark.parametrize("function", [evaluate, predict])
def test_callbacks_of_the_handler_and_of_the_call_hear_it(handler, function):
    heard = []
    attached, given = Hears(heard), Hears(heard)
    handler.add_callback(attached)
    values = run(function, handler, callbacks=[given])
    logs = values if function is evaluate else {}
    assert heard == [(attached, handler, logs), (given, handler, logs)]
    assert given not in handler.callbacks
    run(function, handler)
    assert len(heard) == 3


@pytest.mark.parametrize("function", [evaluate, predict])
def test_nothing_of_the_handler_changes(handler, function):
    handler.module.train()
    before = handler.state.state_dict()
    run(function, handler)
    assert handler.state.state_dict() == before
    assert handler.module.training


def test_inside_a_fit_the_epoch_goes_on(handler):
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    values, heard = [], []

    class Looks(Callback):
        def on_train_batch_end(self, batch, logs):
            values.append(run(evaluate, self.handler)["loss"])
            values.append(run(evaluate, self.handler, callbacks=[Hears(heard)])["loss"])

    handler.fit(DATA, batch_size=2, callbacks=[Looks()], progress_bar=False)
    assert (len(values), len(heard)) == (6, 3)
    assert handler.state.global_step == 3
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("function", [evaluate, predict])
def test_no_batch_is_an_error(handler, function):
    with pytest.raises(DataError, match="yields no batch: check that it is not empty"):
        run(function, handler, data=[], size=None)


def test_outputs_of_several_ranks_take_turns(handler):
    def add(batch, number):
        return batch._replace(outputs=batch.outputs + number)

    class Three(World):
        """Rank 0 of three; the last rank has one batch less."""

        def gather_all(self, value):
            return [value, [add(output, 100) for output in value], [add(value[0], 200), None, None]]

    handler.world = Three()
    own = handler.module(X).detach()
    a, b, c = own[:2], own[2:4], own[4:]
    expected = torch.cat([a, a + 100, a + 200, b, b + 100, c, c + 100])
    torch.testing.assert_close(run(predict, handler), expected)
