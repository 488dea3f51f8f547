"""Error messages: what was expected, what was received, what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fitkit import (
    Accuracy,
    Callback,
    ConfigurationError,
    DataError,
    FitkitError,
    ModelCheckpoint,
    MonitorError,
    NNHandler,
)
from fitkit.callbacks.early_stopping import EarlyStopping
from fitkit.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau


class Net(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layer = nn.Linear(3, width)

    def forward(self, x):
        return self.layer(x)


def data(size=8):
    return torch.randn(size, 3), torch.randint(2, (size,))


@pytest.fixture
def handler():
    handler = NNHandler(Net, "cpu", width=2)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    return handler


def check(kind, sentence, action):
    """The error is ours, one line, and was raised by fitkit on purpose."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert isinstance(caught.value, FitkitError)
    assert re.search(sentence, message), message
    assert "\n" not in message
    assert "fitkit" in str(caught.traceback[-1].path)
    return caught.value


# ---- the constructor ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"model_class": "Net"}, "torch.nn.Module subclass or a ready module, received a str"),
        ({"model_class": dict}, "received the class dict"),
        ({"model_class": None}, "received a NoneType"),
        ({"model_class": Net(2), "width": 3}, "takes no further arguments; received 'width'"),
        ({"model_class": Net}, "Net cannot be built with the arguments none.*'width'"),
        ({"model_class": Net, "widht": 3}, "It takes 'width'. Did you mean 'width'"),
        ({"model_class": Net, "width": 2, "model_type": "clasification"}, "Did you mean 'classif"),
        ({"model_class": Net, "width": 2, "model_type": 3}, "received 3"),
        ({"model_class": Net, "width": 2, "device": "gpu"}, "received 'gpu'"),
        ({"model_class": Net, "width": 2, "device": 1.5}, "received 1.5"),
        ({"model_class": Net, "width": 2, "logger_mode": "screen"}, "'console'.*received 'screen'"),
        ({"model_class": Net, "width": 2, "logger_level": "loud"}, "logging.INFO.*'loud'"),
        ({"model_class": Net, "width": 2, "seed": -1}, "seed must be .* at least 0.*received -1"),
        ({"model_class": Net, "width": 2, "seed": 1.5}, "seed must be"),
        ({"model_class": Net, "width": 2, "seed": True}, "seed must be"),
        ({"model_class": Net, "width": 2, "use_distributed": "yes"}, "received 'yes'"),
        (
            {"model_class": Net, "width": 2, "use_distributed": True},
            "no launcher has started this process",
        ),
    ],
)
def test_the_constructor(arguments, sentence):
    check(ConfigurationError, sentence, lambda: NNHandler(**arguments))


def test_a_device_that_is_not_here():
    if torch.cuda.is_available():
        pytest.skip("it is here")
    check(ConfigurationError, "'cuda'.*device='cpu'", lambda: NNHandler(Net(2), "cuda"))


# ---- setters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setter", "arguments", "keywords", "sentence"),
    [
        ("set_optimizer", ["Adam"], {}, "expects an Optimizer class.*received a str"),
        ("set_optimizer", [nn.Linear], {}, "received the class Linear"),
        ("set_optimizer", [torch.optim.SGD], {"learning_rate": 1}, "It takes .*'lr'"),
        ("set_optimizer", [torch.optim.SGD], {"momentun": 1}, "Did you mean 'momentum'"),
        ("set_optimizer", [torch.optim.LBFGS], {}, "set_train_step"),
        ("set_loss_fn", [None], {}, "a function .* or a loss module, received a NoneType"),
        ("set_loss_fn", ["mse"], {}, "received a str"),
        ("set_loss_fn", [nn.CrossEntropyLoss], {"wieght": 1}, "Did you mean 'weight'"),
        ("add_metric", ["loss", Accuracy()], {}, "clashes"),
        ("add_metric", ["val_a", Accuracy()], {}, "clashes"),
        ("add_metric", ["a", Accuracy], {}, "pass an instance"),
        ("add_callback", [Callback], {}, r"received the class Callback: write Callback\("),
        ("add_callback", [print], {}, "LambdaCallback"),
        ("remove_callback", [Callback()], {}, "is not attached"),
        ("auto_save", [-2], {}, "-1 .*received -2"),
        ("auto_save", [True], {}, "received True"),
        ("auto_save", [1.5], {}, "received 1.5"),
        ("set_train_loader", [data()], {"batch_size": 2, "global_batch_size": 2}, "pass one"),
        ("set_train_loader", [data()], {"global_batch_size": 0}, "global_batch_size must"),
        ("set_train_step", [1], {}, "must be a function"),
    ],
)
def test_setters(handler, setter, arguments, keywords, sentence):
    check(ConfigurationError, sentence, lambda: getattr(handler, setter)(*arguments, **keywords))


def test_an_optimizer_value_that_torch_refuses_is_torch_s_own_sentence(handler):
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        handler.set_optimizer(torch.optim.SGD, lr=-1)


def test_a_model_without_parameters(handler):
    bare = NNHandler(nn.Identity(), "cpu")
    check(
        ConfigurationError,
        "Identity has no parameters",
        lambda: bare.set_optimizer(torch.optim.SGD, lr=0.1),
    )


def test_a_failed_setter_leaves_the_old_part(handler):
    optimizer = handler.optimizer
    with pytest.raises(ConfigurationError):
        handler.set_optimizer(torch.optim.SGD, learning_rate=1)
    assert handler.optimizer is optimizer
    handler.fit(data(), progress_bar=False)


# ---- arguments of fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": -1}, "epochs must be a whole number of at least 0, received -1"),
        ({"epochs": 1.5}, "received 1.5"),
        ({"epochs": "3"}, "received '3'"),
        ({"validate_every": 0}, "validate_every must be .* at least 1, received 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must"),
        ({"batch_size": 0}, "batch_size must be .* or None, received 0"),
        ({"batch_size": 2.0}, "batch_size must"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must"),
        ({"validation_steps": -1}, "validation_steps must"),
        ({"max_steps": 0}, "max_steps must"),
        ({"max_time": "soon"}, "duration.*received 'soon'"),
        ({"max_time": 0}, "duration"),
        ({"ema_decay": 1.0}, r"\(0, 1\).*received 1.0"),
        ({"ema_decay": -0.1}, r"\(0, 1\)"),
        ({"ema_decay": "high"}, "ema_decay must be a finite number"),
        ({"precision": "fp8"}, "'bf16', 'fp16', 'fp32' or None, received 'fp8'"),
        ({"precision": "float16"}, "received 'float16'"),
        ({"seed": -3}, "seed must"),
        ({"callbacks": "history"}, "list of Callback instances, received 'history'"),
        ({"callbacks": 3}, "received 3"),
        ({"callbacks": [print]}, "LambdaCallback"),
        ({"callbacks": [EarlyStopping]}, "received the class EarlyStopping"),
        ({"validation_split": 1.0}, r"\(0, 1\), received 1.0"),
        ({"validation_split": -0.5}, r"\(0, 1\)"),
        ({"validation_split": "0.1"}, "validation_split must"),
        ({"validation_split": 0.5, "validation_data": data()}, "pass one of them"),
        ({"resume": 3}, "file, a folder, True or None, received 3"),
        ({"resume": True}, "none is attached"),
        ({"resume": "no/such/file.pth"}, "there is no such file"),
    ],
)
def test_arguments_of_fit(handler, options, sentence):
    before = {name: value.clone() for name, value in handler.module.state_dict().items()}
    check(FitkitError, sentence, lambda: handler.fit(data(), progress_bar=False, **options))
    for name, value in handler.module.state_dict().items():
        assert torch.equal(before[name], value)


def test_an_unknown_argument_is_python_s_own_error(handler):
    with pytest.raises(TypeError, match="epoch_count"):
        handler.fit(data(), epoch_count=3)


# ---- data ---------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*data(), strict=True))


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (lambda: 3, "data must be arrays or tensors, .*; received a int"),
        (lambda: "data", "received a str"),
        (lambda: (torch.randn(4, 3), torch.zeros(5).long()), r"first dimension.*\(4, 3\), \(5,\)"),
        (lambda: (torch.randn(4, 3), [0, 1, 0, 1]), "a tuple as data must hold arrays"),
        (lambda: (np.array([["a"]]), np.array([1])), "dtype <U1: encode it as numbers"),
        (lambda: torch.randn(4, 3), r"must be \(inputs, targets\).*a tensor of shape \(4, 3\)"),
        (lambda: (torch.randn(4, 3), torch.zeros(4), torch.zeros(4)), "tuple of 3 elements"),
        (lambda: [torch.randn(4, 3)], r"a tensor of shape \(4, 3\)"),
        (lambda: [{"x": torch.randn(4, 3)}], "targets under exactly one of.*the keys 'x'"),
        (lambda: [{"x": 1, "y": 2, "label": 3}], "exactly one of"),
        (lambda: [3], "received a int"),
        (
            lambda: TensorDataset(torch.randn(4, 3)),
            "must be .inputs, targets.*tuple of 1|list of 1",
        ),
    ],
)
def test_data_that_cannot_be_used(handler, bad, sentence):
    check(DataError, sentence, lambda: handler.fit(bad(), progress_bar=False))
    check(DataError, sentence, lambda: handler.evaluate(bad()))
    check(
        DataError, sentence, lambda: handler.fit(data(), validation_data=bad(), progress_bar=False)
    )


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        (lambda: DataLoader(TensorDataset(*data())), {"batch_size": 2}, "batch_size cannot be set"),
        (lambda: DataLoader(TensorDataset(*data())), {"shuffle": True}, "shuffle cannot be set"),
        (lambda: [data()], {"batch_size": 2}, "an iterable of batches"),
        (Stream, {"shuffle": True}, "IterableDataset determines its own order"),
        (lambda: [data()], {"validation_split": 0.5}, "split the data yourself"),
        (Stream, {"validation_split": 0.5}, "split the data yourself"),
    ],
)
def test_settings_that_the_data_cannot_take(handler, source, options, sentence):
    check(
        ConfigurationError, sentence, lambda: handler.fit(source(), progress_bar=False, **options)
    )


@pytest.mark.parametrize(
    "split", [lambda x, y: [(x, y)], lambda x, y: DataLoader(TensorDataset(x, y))]
)
def test_a_batch_size_is_not_forced_on_validation_data_with_batches_of_its_own(handler, split):
    history = handler.fit(
        data(), batch_size=4, validation_data=split(*data()), progress_bar=False
    ).history
    assert len(history["val_loss"]) == 1


def test_labels_of_the_wrong_kind_carry_the_batch_in_a_note(handler):
    x, y = data()
    with pytest.raises(RuntimeError) as caught:
        handler.fit((x, y.to(torch.int32)), progress_bar=False, batch_size=8)
    assert (
        caught.value.__notes__[0] == "raised by the step on a batch of float32 (8, 3), int32 (8,)"
    )


# ---- monitors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda monitor, path: EarlyStopping(monitor, mode="min"),
        lambda monitor, path: ReduceLROnPlateau(monitor, mode="min"),
        lambda monitor, path: ModelCheckpoint(
            path / "m.pth", monitor, mode="min", save_best_only=True
        ),
    ],
)
def test_a_monitor_that_is_not_there(handler, make, tmp_path):
    handler.add_metric("accuracy", Accuracy())

    def fit(monitor, **options):
        callbacks = [make(monitor, tmp_path)]
        return lambda: handler.fit(data(), progress_bar=False, callbacks=callbacks, **options)

    check(MonitorError, "'val_loss', but this fit has no validation", fit("val_loss"))
    assert handler.state.global_step == 0
    error = check(MonitorError, "'acuracy'.*logged are .*'accuracy'.*Did you mean", fit("acuracy"))
    assert error is not None
    check(
        MonitorError,
        "'val_acuracy'.*not logged; .*Did you mean 'val_accuracy'",
        fit("val_acuracy", validation_split=0.5),
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau])
def test_modes(kind):
    check(
        MonitorError,
        "mode must be 'auto', 'min' or 'max', received 'low'",
        lambda: kind("loss", mode="low"),
    )
    check(MonitorError, "pass mode='min' or mode='max'", lambda: kind("zebra"))
