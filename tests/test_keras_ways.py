"""What users of Keras expect to work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fitkit
from fitkit import (
    Accuracy,
    Callback,
    CSVLogger,
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    NNHandler,
    ReduceLROnPlateau,
    TerminateOnNaN,
)


@pytest.fixture
def arrays():
    """Two blobs: float64 features and Python-int labels, as NumPy makes them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=120)
    return rng.normal(size=(120, 4)) + 2.0 * labels[:, None], labels


@pytest.fixture
def handler():
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    handler = NNHandler(model, "cpu", seed=0)
    handler.set_optimizer(torch.optim.Adam, lr=0.02)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.add_metric("accuracy", Accuracy())
    return handler


def fit(handler, data, **options):
    return handler.fit(data, **{"epochs": 5, "batch_size": 16, "progress_bar": False, **options})


def test_fit_evaluate_predict_with_arrays(handler, arrays):
    x, y = arrays
    history = fit(handler, (x, y), validation_split=0.2)
    assert isinstance(history, History)
    assert history.epoch == [0, 1, 2, 3, 4]
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr"}
    assert all(len(column) == 5 for column in history.history.values())
    assert all(type(v) is float for column in history.history.values() for v in column)
    assert history.history["accuracy"][-1] > 0.9
    values = handler.evaluate((x, y))
    assert set(values) == {"loss", "accuracy"}
    scores = handler.predict(x)
    assert scores.shape == (120, 2)
    assert (scores.argmax(1).numpy() == y).mean() == pytest.approx(values["accuracy"])


def test_validation_split_takes_the_end_before_shuffling(handler, arrays):
    x, y = arrays
    history = fit(handler, (x, y), epochs=1, validation_split=0.25)
    assert handler.state.samples_seen == 90
    expected = handler.evaluate((x[90:], y[90:]))
    assert history.history["val_loss"] == pytest.approx([expected["loss"]], rel=1e-5)


def test_validation_data_and_the_split_size(handler, arrays):
    x, y = arrays
    history = fit(handler, (x[:100], y[:100]), validation_data=(x[100:], y[100:]))
    assert len(history.history["val_accuracy"]) == 5


def test_a_regression_with_float64_arrays():
    handler = NNHandler(nn.Linear(3, 1), "cpu", model_type="regression", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    history = fit(handler, (x, x.sum(axis=1, keepdims=True)), epochs=20)
    assert history.history["loss"][-1] < 0.01


def test_targets_that_would_be_broadcast_are_refused():
    """(batch, 1) against (batch,), of which torch only warns."""
    handler = NNHandler(nn.Linear(3, 1), "cpu", model_type="regression", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    with pytest.raises(fitkit.DataError, match=r"pass targets\[:, None\] for targets"):
        fit(handler, (np.zeros((8, 3)), np.zeros(8)))


class Carried(Callback):
    """A callback as written for Keras, with ``logs=None``."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append(("begin", self.params["epochs"], self.params["steps"]))

    def on_train_batch_end(self, batch, logs=None):
        logs = logs or {}
        self.seen.append((batch, round(logs.get("loss"), 3)))

    def on_epoch_end(self, epoch, logs=None):
        if logs.get("accuracy") >= self.target and logs["val_accuracy"] >= self.target:
            self.model.stop_training = True


def test_a_callback_is_carried_over(handler, arrays):
    carried = Carried(target=0.9)
    history = fit(handler, arrays, epochs=50, validation_split=0.2, callbacks=[carried])
    assert carried.seen[0] == ("begin", 50, 6)
    assert [batch for batch, _ in carried.seen[1:7]] == [0, 1, 2, 3, 4, 5]
    assert len(history.epoch) < 50
    assert history.history["accuracy"][-1] >= 0.9
    assert "model.stop_training" in handler.state.stop_reason


def test_early_stopping_brings_the_best_weights_back(handler, arrays):
    x, y = arrays
    scores = iter([0.5, 0.9, 0.6, 0.7, 0.8])
    kept = {}

    class Scores(Callback):
        def on_test_end(self, logs):
            epoch = self.handler.state.epoch
            kept[epoch] = {k: v.clone() for k, v in self.model.state_dict().items()}
            self.log("val_score", next(scores))

    stopping = EarlyStopping(monitor="val_score", mode="max", patience=2, restore_best_weights=True)
    fit(handler, (x, y), epochs=10, validation_split=0.2, callbacks=[stopping, Scores()])
    assert handler.history.epoch == [0, 1, 2, 3]
    assert stopping.stopped_epoch == 3
    for name, value in handler.module.state_dict().items():
        assert torch.equal(value, kept[1][name])


def test_the_usual_callbacks_together(handler, arrays, tmp_path):
    history = fit(
        handler,
        arrays,
        validation_split=0.2,
        callbacks=[
            ModelCheckpoint(tmp_path / "best.pth", monitor="val_accuracy", save_best_only=True),
            EarlyStopping(monitor="val_loss", patience=3),
            ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1),
            CSVLogger(tmp_path / "log.csv"),
            TerminateOnNaN(),
            LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        ],
    ).history
    best = NNHandler.load(tmp_path / "best.pth", model_class=handler.module)
    assert best.history.history["val_accuracy"][-1] == max(history["val_accuracy"])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + len(history["loss"])


def test_reduce_lr_on_plateau_reduces(handler, arrays):
    handler.set_optimizer(torch.optim.SGD, lr=1e-6)
    callback = ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=1.0)
    rates = fit(handler, arrays, callbacks=[callback], epochs=4).history["lr"]
    assert rates == pytest.approx([1e-6, 1e-6, 1e-7, 1e-8], rel=1e-6) or rates == pytest.approx(
        [1e-6, 1e-6, 1e-7, 1e-7], rel=1e-6
    )


def test_a_learning_rate_schedule_by_function(handler, arrays):
    callback = LearningRateScheduler(lambda epoch, rate: rate * 0.5 if epoch else rate)
    rates = fit(handler, arrays, callbacks=[callback], epochs=3).history["lr"]
    assert rates == pytest.approx([0.02, 0.01, 0.005])


def test_fit_twice_goes_on(handler, arrays):
    fit(handler, arrays, epochs=2)
    assert fit(handler, arrays, epochs=1).epoch == [0, 1, 2]


def test_images_in_bytes_and_labels_in_bytes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return self.body(x.float() / 255)

    handler = NNHandler(Scales(), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(20, 4, 4), dtype=np.uint8)
    labels = rng.integers(0, 3, size=20).astype(np.uint8)
    assert len(fit(handler, (images, labels), validation_split=0.2).epoch) == 5


def test_arrays_are_neither_changed_nor_copied_back(handler, arrays):
    x, y = (array.copy() for array in arrays)
    fit(handler, arrays)
    assert np.array_equal(x, arrays[0])
    assert np.array_equal(y, arrays[1])


def test_the_version_is_there():
    assert fitkit.__version__.count(".") >= 1


def test_targets_as_the_second_argument(arrays):
    results = []
    for paired in (True, False):
        handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=4, out_features=2)
        handler.set_optimizer(torch.optim.SGD, lr=0.1)
        handler.set_loss_fn(nn.CrossEntropyLoss())
        data = (arrays,) if paired else arrays
        handler.fit(*data, epochs=2, batch_size=16, progress_bar=False)
        results.append((handler.evaluate(*data), handler.module.weight.tolist()))
    assert results[0] == results[1]
    with pytest.raises(
        fitkit.ConfigurationError, match="pass other arguments by name, such as epo"
    ):
        handler.fit(arrays, 10)
