"""Prediction batch by batch: modes, weights, events, early ends, and memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from fitkit import Callback, ConfigurationError, DataError, NNHandler
from fitkit.callbacks.lambda_callback import LambdaCallback


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.out = nn.Linear(3, 1)

    def forward(self, x):
        return self.out(self.norm(x))


X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


@pytest.fixture
def handler():
    handler = NNHandler(Net, "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def fit(handler, **options):
    handler.fit((X, Y), batch_size=7, progress_bar=False, **options)


def state(handler):
    modes = [module.training for module in handler.module.modules()]
    return modes, [value.clone() for value in handler.module.state_dict().values()]


def assert_same(before, after):
    assert before[0] == after[0]
    torch.testing.assert_close(before[1], after[1], rtol=0, atol=0)


# ---- the values ---------------------------------------------------------------------------------


def test_batches_are_those_of_predict(handler):
    fit(handler, ema_decay=0.5, epochs=3)
    batches = list(handler.predict_batches((X, Y), batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches), handler.predict((X, Y), batch_size=3))


def test_they_are_not_joined_so_each_may_differ():
    handler = NNHandler(nn.Identity(), "cpu")
    data = [torch.ones(2, 3), torch.ones(2, 5)]
    assert [batch.shape for batch in handler.predict_batches(data)] == [(2, 3), (2, 5)]


def test_what_is_no_tensor_is_yielded_unless_tensors_only(handler):
    handler.set_predict_step(lambda handler, batch: {"y": handler.model(batch[0]), "cache": object})
    assert next(handler.predict_batches((X, Y)))["cache"] is object
    assert list(next(handler.predict_batches((X, Y), tensors_only=True))) == ["y"]


def test_steps_limit_them(handler):
    assert len(list(handler.predict_batches(X, batch_size=2, steps=2))) == 2


def test_bf16_becomes_float32(handler):
    assert next(handler.predict_batches(X, precision="bf16")).dtype is torch.float32


def test_arguments_are_checked_when_it_is_called(handler):
    with pytest.raises(ConfigurationError, match="steps must be a whole number"):
        handler.predict_batches(X, steps=0)
    with pytest.raises(ConfigurationError, match="precision must be one of"):
        handler.predict_batches(X, precision="fp8")


def test_no_batch_is_an_error(handler):
    with pytest.raises(DataError, match="yields no batch"):
        list(handler.predict_batches([]))
    with pytest.raises(DataError, match="yields no batch"):
        handler.predict([], return_outputs=False)


# ---- between two batches ------------------------------------------------------------------------


def test_between_batches_the_model_has_its_own_modes_and_weights(handler):
    fit(handler, ema_decay=0.5, epochs=3)
    handler.module.train()
    handler.module.norm.eval()
    before = state(handler)
    for _ in handler.predict_batches(X, batch_size=2):
        assert_same(before, state(handler))
    assert_same(before, state(handler))


def test_training_in_between_is_as_without_it(handler):
    other = NNHandler(Net, "cpu", seed=0)
    other.set_optimizer(torch.optim.SGD, lr=0.1)
    other.set_loss_fn(nn.MSELoss())
    batches = handler.predict_batches(X, batch_size=2)
    outputs = []
    for _ in range(3):
        outputs.append(next(batches))
        fit(handler, ema_decay=0.9)
        fit(other, ema_decay=0.9)
    assert_same(state(other), state(handler))
    assert handler.evaluate((X, Y)) == other.evaluate((X, Y))
    assert torch.equal(next(batches), handler.predict(X[6:]))  # with the weights of that moment
    assert not torch.equal(outputs[1], handler.predict(X[2:4]))


def test_gradients_may_be_recorded_in_between(handler):
    batches = handler.predict_batches(X, batch_size=2)
    next(batches)
    assert torch.is_grad_enabled()
    assert handler.module(X).requires_grad
    assert not torch.is_inference(next(batches))


@pytest.mark.parametrize("end", ["close", "drop", "throw"])
def test_a_caller_may_stop_early(handler, recorder, end):
    fit(handler, ema_decay=0.5, epochs=2)
    before = state(handler)
    batches = handler.predict_batches(X, batch_size=2, callbacks=[recorder])
    next(batches)
    if end == "close":
        batches.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            batches.throw(KeyError)
    del batches
    gc.collect()
    assert_same(before, state(handler))
    batch = ["predict_batch_begin 0", "predict_outputs 0", "predict_batch_end 0"]
    assert recorder.heard == ["predict_begin", *batch, "predict_end"]
    assert len(handler.predict(X)) == 7


def test_one_that_is_never_begun_does_nothing(handler, recorder):
    handler.predict_batches(X, callbacks=[recorder])
    assert recorder.heard == []


class BoomError(Exception):
    pass


def boom(*args):
    raise BoomError


@pytest.mark.parametrize(
    "hook", ["begin", "batch_begin", "outputs", "batch_end", "end", "model", "data"]
)
def test_an_error_puts_everything_back(handler, hook):
    fit(handler, ema_decay=0.5, epochs=2)
    handler.module.norm.eval()
    before, data, callbacks = state(handler), [X[:4], X[4:]], []
    if hook == "model":
        handler.set_predict_step(boom)
    elif hook == "data":
        data = map(boom, X)
    else:
        callbacks = [LambdaCallback(**{f"on_predict_{hook}": boom})]
    with pytest.raises(BoomError):
        list(handler.predict_batches(data, callbacks=callbacks))
    assert_same(before, state(handler))


# ---- events -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["predict", "predict_batches"])
def test_the_same_events_are_heard(handler, recorder, verb):
    list(getattr(handler, verb)(X, batch_size=4, callbacks=[recorder]))
    assert recorder.heard == [
        "predict_begin",
        "predict_batch_begin 0",
        "predict_outputs 0",
        "predict_batch_end 0",
        "predict_batch_begin 1",
        "predict_outputs 1",
        "predict_batch_end 1",
        "predict_end",
    ]


def test_hooks_see_the_model_as_it_predicts(handler):
    fit(handler, ema_decay=0.5, epochs=2)
    average = handler.ema.weights()["out.weight"].clone()
    seen = []

    class Looks(Callback):
        def look(self, *args):
            same = torch.equal(self.model.out.weight, average)
            seen.append(same and not self.model.training)

        on_predict_begin = on_predict_batch_begin = on_predict_outputs = look
        on_predict_batch_end = on_predict_end = look

    handler.predict(X, callbacks=[Looks()])
    list(handler.predict_batches(X, callbacks=[Looks()]))
    assert seen == [True] * 10


def test_callbacks_get_the_outputs(handler):
    heard = []
    watch = LambdaCallback(on_predict_outputs=lambda batch, outputs: heard.append(outputs))
    assert handler.predict(X, batch_size=3, callbacks=[watch], return_outputs=False) is None
    assert torch.equal(torch.cat(heard), handler.predict(X, batch_size=3))
    assert {outputs.device.type for outputs in heard} == {"cpu"}


def test_memory_is_constant_without_returned_outputs(handler):
    alive, most = [], []

    class Counts(Callback):
        def on_predict_outputs(self, batch, outputs):
            alive.append(weakref.ref(outputs))
            most.append(sum(ref() is not None for ref in alive))

    handler.predict(X, batch_size=1, callbacks=[Counts()], return_outputs=False)
    for batch in handler.predict_batches(X, batch_size=1, callbacks=[Counts()]):
        del batch
    assert len(most) == 14
    assert max(most) <= 2


def test_a_callback_of_before_this_event_works_as_it_did(handler):
    class Old(Callback):
        def on_predict_batch_end(self, batch, logs):
            self.last = (batch, dict(logs))

    old = Old()
    handler.predict(X, batch_size=4, callbacks=[old])
    assert old.last == (1, {})


# ---- the user's step ----------------------------------------------------------------------------


def test_a_step_of_your_own_replaces_split_and_model(handler):
    fit(handler, ema_decay=0.5, epochs=2)
    seen = []

    def step(given, batch):
        seen.append((given, len(batch), given.module.training, torch.is_grad_enabled()))
        return [f"{v:.3f}" for v in given.model(batch[1])[:, 0]]

    handler.set_predict_step(step)
    batches = [(Y[:4], X[:4], None), (Y[4:], X[4:], None)]  # no batch that predict could split
    texts = handler.predict(batches)
    assert seen == [(handler, 3, False, False)] * 2
    handler.set_predict_step(None)
    assert texts == [f"{v:.3f}" for v in handler.predict([X[:4], X[4:]])[:, 0]]


def test_it_is_used_by_predict_batches_and_not_by_evaluate(handler):
    before = handler.evaluate((X, Y))
    handler.set_predict_step(lambda handler, batch: batch[0] * 0)
    assert not next(handler.predict_batches((X, Y))).any()
    assert handler.evaluate((X, Y)) == before


def test_it_is_no_part_of_a_checkpoint(handler, tmp_path):
    handler.set_predict_step(lambda handler, batch: batch[0] * 0)
    handler.save(tmp_path / "a.pth")
    loaded = NNHandler.load(tmp_path / "a.pth", "cpu")
    assert loaded.predict(X).any()


def test_a_step_must_be_a_function(handler):
    with pytest.raises(ConfigurationError, match=r"must be a function \(handler, batch\) -> out"):
        handler.set_predict_step("generate")
