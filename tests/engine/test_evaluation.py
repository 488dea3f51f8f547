"""Evaluation and prediction: every form of data, order, modes and averaged weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fitkit import Callback, ConfigurationError, DataError, Event, NNHandler, StepOutput
from fitkit.callbacks.lambda_callback import LambdaCallback


def fit(handler, data, **options):
    return handler.fit(
        data, **{"progress_bar": False, "batch_size": 2, "shuffle": False, **options}
    )


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


class Named(Rows):
    def __getitem__(self, index):
        return {"x": self.x[index], "label": self.y[index]}


FORMS = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "float32 arrays": lambda x, y: (x.float().numpy(), y.numpy()),
    "mapping": lambda x, y: {"inputs": x, "targets": y},
    "TensorDataset": lambda x, y: TensorDataset(x, y),
    "dataset": Rows,
    "dataset of mappings": Named,
    "stream": Stream,
    "list of batches": lambda x, y: list(zip(x.split(3), y.split(3), strict=True)),
    "generator": lambda x, y: ((a, b) for a, b in zip(x.split(3), y.split(3), strict=True)),
    "list of lists": lambda x, y: [[a, b] for a, b in zip(x.split(3), y.split(3), strict=True)],
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=3),
    "shuffled loader": lambda x, y: DataLoader(Rows(x, y), batch_size=3, shuffle=True),
    "drop_last": lambda x, y: DataLoader(Rows(x, y), batch_size=3, drop_last=True),
    "workers": lambda x, y: DataLoader(Rows(x, y), batch_size=3, shuffle=True, num_workers=1),
    "batch sampler": lambda x, y: DataLoader(
        Rows(x, y), batch_sampler=BatchSampler(RandomSampler(range(len(x))), 3, drop_last=False)
    ),
    "sampler": lambda x, y: DataLoader(
        Rows(x, y), batch_size=3, sampler=WeightedRandomSampler([1.0] * len(x), 5)
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_prediction_has_the_order_of_the_data(make_handler, make_data, form):
    handler = make_handler()
    x, y = make_data(10)
    expected = handler.module(x).detach()
    outputs = handler.predict(FORMS[form](x, y))
    torch.testing.assert_close(outputs, expected, check_stride=False, rtol=1e-6, atol=1e-6)
    assert not outputs.requires_grad


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("drop_last", "sampler")])
def test_evaluation_is_that_of_the_whole_data(make_handler, make_data, form):
    handler = make_handler()
    handler.add_metric("error", lambda outputs, targets: (outputs - targets).abs().mean())
    x, y = make_data(10)
    outputs = handler.module(x)
    values = handler.evaluate(FORMS[form](x, y))
    assert values == {
        "loss": pytest.approx((outputs - y).square().mean().item(), rel=1e-5),
        "error": pytest.approx((outputs - y).abs().mean().item(), rel=1e-5),
    }


@pytest.mark.parametrize("form", [f for f in FORMS if f not in ("drop_last", "sampler")])
def test_each_form_trains(make_handler, make_data, form):
    handler = make_handler()
    x, y = make_data(10)
    data = FORMS[form](x, y)
    history = handler.fit(data, progress_bar=False)
    assert handler.state.samples_seen == 10
    assert history.history["loss"][0] > 0


@pytest.mark.parametrize(
    "inputs",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: {"x": x},
        lambda x: x.numpy(),
        lambda x: TensorDataset(x),
        lambda x: [x[:4], x[4:]],
        lambda x: [(x[:4],), (x[4:],)],
        lambda x: DataLoader(TensorDataset(x), batch_size=4),
        lambda x: DataLoader(x, batch_size=4, shuffle=True),
    ],
)
def test_prediction_needs_no_targets(make_handler, make_data, inputs):
    handler = make_handler()
    x, _ = make_data(7)
    torch.testing.assert_close(
        handler.predict(inputs(x)), handler.module(x).detach(), rtol=1e-6, atol=1e-6
    )


@settings(max_examples=30)
@given(size=st.integers(1, 30), batch=st.integers(1, 31), steps=st.none() | st.integers(1, 8))
def test_steps_limit_what_is_read(size, batch, steps):
    handler = NNHandler(nn.Identity(), "cpu", model_type="generative")
    handler.set_loss_fn(lambda outputs, targets: outputs.mean())
    x = torch.arange(float(size)).unsqueeze(1)
    expected = x if steps is None else x[: steps * batch]
    assert torch.equal(handler.predict(x, batch_size=batch, steps=steps), expected)
    value = handler.evaluate(x, batch_size=batch, steps=steps)["loss"]
    assert value == pytest.approx(expected.mean().item())


def test_a_batch_of_three_cannot_be_predicted(make_handler, make_data):
    x, y = make_data(4)
    with pytest.raises(DataError, match=r"\(inputs, targets\) or a mapping.*tuple of 3"):
        make_handler().predict([(x, y, y)])


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_must_count(make_handler, make_data, steps):
    with pytest.raises(ConfigurationError, match="steps must be a whole number"):
        make_handler().evaluate(make_data(4), steps=steps)
    with pytest.raises(ConfigurationError, match="steps must be a whole number"):
        make_handler().predict(make_data(4), steps=steps)


def test_evaluate_needs_data_and_a_loss(make_handler, make_data):
    with pytest.raises(ConfigurationError, match=r"call handler\.set_val_loader"):
        make_handler().evaluate()
    with pytest.raises(ConfigurationError, match=r"no loss function is set: call .*set_loss_fn"):
        NNHandler(nn.Linear(3, 1).double(), "cpu").evaluate(make_data(4))


def test_evaluate_takes_the_loader_that_was_set(make_handler, make_data):
    handler = make_handler()
    handler.set_val_loader(TensorDataset(*make_data(5)), batch_size=2)
    assert handler.evaluate() == handler.evaluate(make_data(5), batch_size=2)
    assert handler.evaluate(batch_size=5) == handler.evaluate(make_data(5), batch_size=5)
    assert handler.evaluate(steps=1) == handler.evaluate(tuple(p[:2] for p in make_data(5)))


def test_an_integer_array_is_predicted_by_a_model_that_wants_integers():
    handler = NNHandler(nn.Embedding(9, 2), "cpu", seed=0)
    outputs = handler.predict(np.array([3, 1, 4], dtype=np.int32))
    assert torch.equal(outputs, handler.module.weight[[3, 1, 4]])


# ---- events -------------------------------------------------------------------------------------


def test_evaluate_and_predict_are_heard(make_handler, make_data, recorder):
    handler = make_handler()
    handler.evaluate(make_data(3), batch_size=2, callbacks=[recorder])
    assert recorder.heard == [
        "test_begin",
        "test_batch_begin 0",
        "test_batch_end 0",
        "test_batch_begin 1",
        "test_batch_end 1",
        "test_end",
    ]
    recorder.heard.clear()
    handler.add_callback(recorder)
    handler.predict(make_data(3), batch_size=2)
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


def test_hooks_of_an_evaluation_get_values(make_handler, make_data):
    seen = []
    watch = LambdaCallback(
        on_test_batch_end=lambda batch, logs: seen.append(logs["loss"]),
        on_test_end=lambda logs: seen.append(logs["loss"]),
    )
    handler = make_handler()
    values = handler.evaluate(make_data(4), batch_size=2, callbacks=[watch])
    assert seen[2] == values["loss"] == pytest.approx((seen[0] + seen[1]) / 2)


# ---- what evaluation must leave alone -----------------------------------------------------------


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(3, 1)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.out(self.drop(self.norm(x)))


def modes(module):
    return {name: part.training for name, part in module.named_modules()}


def float32(make_data, size):
    return tuple(part.float() for part in make_data(size))


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_each_module_s_mode_is_put_back(make_handler, make_data, verb):
    handler = make_handler(Frozen())
    handler.module.train()
    handler.module.norm.eval()
    before = modes(handler.module)
    buffers = handler.module.norm.running_mean.clone()
    getattr(handler, verb)(float32(make_data, 4))
    assert modes(handler.module) == before
    assert handler.module.modes == [False]
    assert torch.equal(handler.module.norm.running_mean, buffers)


def test_a_norm_that_a_callback_froze_stays_frozen_over_validation(make_handler, make_data):
    class Freeze(Callback):
        def on_train_begin(self, logs):
            self.model.norm.eval()

    handler = make_handler(Frozen())
    before = handler.module.norm.running_mean.clone()
    data = float32(make_data, 4)
    fit(handler, data, epochs=3, validation_data=data, callbacks=[Freeze()])
    assert torch.equal(handler.module.norm.running_mean, before)
    assert handler.module.training
    assert not handler.module.norm.training


class BoomError(Exception):
    pass


def boom(*args):
    raise BoomError


FAILURES = {
    "hook": {"callbacks": [LambdaCallback(on_test_batch_end=boom, on_predict_batch_end=boom)]},
    "begin": {"callbacks": [LambdaCallback(on_test_begin=boom, on_predict_begin=boom)]},
    "end": {"callbacks": [LambdaCallback(on_test_end=boom, on_predict_end=boom)]},
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_modes_and_averages_are_put_back_on_errors(make_handler, make_data, weights, verb, failure):
    handler = make_handler(Frozen())
    data = float32(make_data, 8)
    fit(handler, data, epochs=2, ema_decay=0.9)
    before, before_modes = weights(handler), modes(handler.module)
    with pytest.raises(BoomError):
        getattr(handler, verb)(data, **FAILURES[failure])
    assert torch.equal(weights(handler), before)
    assert modes(handler.module) == before_modes


def test_averages_are_put_back_when_validation_fails_inside_fit(make_handler, make_data, weights):
    plain, failing = make_handler(), make_handler()
    kwargs = {"ema_decay": 0.9, "validation_data": make_data(4)}
    fit(plain, make_data(8), **kwargs)
    watch = LambdaCallback(on_test_batch_end=boom)
    with pytest.raises(BoomError):
        fit(failing, make_data(8), callbacks=[watch], **kwargs)
    assert torch.equal(weights(plain), weights(failing))
    assert failing.module.training


def test_evaluation_and_prediction_use_the_averaged_weights(make_handler, make_data, weights):
    handler = make_handler()
    fit(handler, make_data(8), epochs=2, ema_decay=0.9)
    own = weights(handler)
    average = handler.get_state_dict()["ema_state_dict"]["weights"]
    x, y = make_data(5)
    expected = x @ average["weight"].T + average["bias"]
    torch.testing.assert_close(handler.predict(x), expected)
    assert handler.evaluate((x, y))["loss"] == pytest.approx((expected - y).square().mean().item())
    assert torch.equal(weights(handler), own)
    assert not torch.allclose(own[:3], average["weight"].flatten())


def test_the_average_moves_once_per_optimizer_step(make_handler, make_data):
    handler = make_handler()
    steps = []

    class Keep(Callback):
        def on_optimizer_step_end(self, step, logs):
            steps.append(self.model.weight.detach().clone())

    fit(
        handler,
        make_data(10),
        epochs=2,
        ema_decay=0.75,
        gradient_accumulation_steps=2,
        callbacks=[Keep()],
    )
    average = steps[0]
    for weight in steps[1:]:
        average = 0.75 * average + 0.25 * weight
    assert len(steps) == 6
    torch.testing.assert_close(
        handler.get_state_dict()["ema_state_dict"]["weights"]["weight"], average
    )


def test_validation_inside_fit_is_that_of_evaluate(make_handler, make_data):
    handler = make_handler()
    history = fit(handler, make_data(8), validation_data=make_data(5), ema_decay=0.5).history
    values = handler.evaluate(make_data(5), batch_size=2)
    assert history["val_loss"] == [values["loss"]]


def test_evaluation_touches_neither_counters_nor_gradients(make_handler, make_data, weights):
    handler = make_handler()
    fit(handler, make_data(8))
    before, state = handler.get_state_dict(), handler.state.state_dict()
    handler.evaluate(make_data(4))
    handler.predict(make_data(4))
    assert handler.state.state_dict() == state
    assert handler.get_state_dict()["history"] == before["history"]
    assert all(p.grad is None for p in handler.module.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_evaluation_in_half_precision(make_handler, make_data, precision):
    handler = make_handler(nn.Linear(3, 1))
    data = float32(make_data, 8)
    outputs = handler.predict(data, precision=precision)
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    assert outputs.dtype is torch.float32
    assert torch.equal(outputs, outputs.to(half).float())
    assert not torch.equal(outputs, handler.predict(data))
    assert handler.evaluate(data, precision=precision)["loss"] == pytest.approx(
        handler.evaluate(data)["loss"], rel=0.05
    )


def test_a_callback_of_one_evaluation_is_gone_afterwards(make_handler, make_data, recorder):
    handler = make_handler()
    handler.evaluate(make_data(2), callbacks=[recorder])
    heard = recorder.count(Event.TEST_END)
    handler.evaluate(make_data(2))
    assert recorder.count(Event.TEST_END) == heard == 1
    assert recorder not in handler.callbacks


def test_evaluation_and_prediction_keep_nothing_for_a_backward_pass(make_handler, make_data):
    modes = []

    class Asking(nn.Linear):
        def forward(self, inputs):
            assert not torch.is_inference_mode_enabled()  # what is cached in it cannot be trained
            modes.append(not torch.is_grad_enabled())
            return super().forward(inputs)

    handler = make_handler(Asking(3, 1, dtype=torch.float64))
    fit(handler, make_data(4), validation_data=make_data(2))
    assert modes == [False, False, True]
    handler.evaluate(make_data(2))
    handler.predict(make_data(2)[0])
    assert modes[3:] == [True, True]


def test_an_evaluation_without_a_loss_logs_none(make_handler, make_data):
    handler = make_handler()
    handler.add_metric("mean", lambda outputs, targets: outputs.mean())

    def step(handler, batch):
        return StepOutput(handler.model(batch[0]).square().mean())

    def evaluation_step(handler, batch):
        return StepOutput(None, torch.ones(len(batch[0])), batch[1], logs={"size": 3.0})

    handler.set_train_step(step, evaluation_step)
    history = handler.fit(make_data(5), validation_data=make_data(5), progress_bar=False).history
    assert set(history) == {"loss", "lr", "val_mean", "val_size"}
    assert handler.evaluate(make_data(5)) == {"mean": 1.0, "size": 3.0}
