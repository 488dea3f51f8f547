"""The attributes of a handler that are read from its parts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fitkit import AutoSaver, Callback, ConfigurationError, NNHandler
from fitkit.testing import differences

DATA = (torch.ones(4, 2), torch.zeros(4, 1))
HISTORIES = ["train_losses", "val_losses", "train_metrics_history", "val_metrics_history"]
READ_ONLY = ["model", "module", "optimizer", "scheduler", "callbacks", "auto_saver", "history"]
READ_ONLY += ["state", "device", "ema", "seed", *HISTORIES]


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=3)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def test_a_new_handler():
    module = nn.Linear(1, 1)
    handler = NNHandler(module, "cpu")
    assert handler.model is handler.module is module
    assert handler.optimizer is handler.scheduler is handler.ema is handler.seed is None
    assert handler.auto_saver is None
    assert list(handler.callbacks) == [handler.history]
    assert handler.running_logs() == {}
    assert (handler.state.call, handler.gradient_accumulation_steps) == (0, 1)


@pytest.mark.parametrize("name", READ_ONLY)
def test_attributes_that_are_read_only(handler, name):
    getattr(handler, name)
    with pytest.raises(AttributeError):
        setattr(handler, name, None)


def test_losses_and_metrics_are_those_of_the_history(handler):
    handler.add_metric("bias", lambda outputs, targets: outputs.mean())
    handler.fit(DATA, epochs=2, validation_data=DATA, validate_every=2, progress_bar=False)
    history = handler.history.history
    assert handler.train_losses == history["loss"]
    assert len(handler.train_losses) == 2
    assert handler.val_losses == history["val_loss"][-1:]
    assert list(handler.train_metrics_history) == list(handler.val_metrics_history) == ["bias"]
    assert len(handler.train_metrics_history["bias"]) == 2
    assert len(handler.val_metrics_history["bias"]) == 1


def test_stop_training_can_be_set_and_taken_back(handler):
    assert handler.stop_training is False
    handler.stop_training = True
    assert handler.stop_training is True
    assert handler.state.stop_reason == "stop_training was set"
    handler.stop_training = False
    assert handler.stop_training is False
    assert handler.state.stop_reason is None


def test_the_auto_saver_is_found_among_callbacks(handler, tmp_path):
    handler.add_callback(Callback())
    handler.auto_save(1, tmp_path)
    assert isinstance(handler.auto_saver, AutoSaver)
    handler.auto_save(None)
    assert handler.auto_saver is None


@pytest.mark.parametrize("name", ["loss", "val_loss", "accuracy", "val_accuracy", "lr", "", 3])
def test_names_that_a_callback_cannot_log(handler, name):
    handler.add_metric("accuracy", lambda outputs, targets: outputs.mean())
    with pytest.raises(ConfigurationError, match="a callback cannot log"):
        handler.log(name, 1.0)
    handler.log("free", 1.0)


def test_running_logs_are_the_means_so_far(handler):
    seen = []

    class Read(Callback):
        def on_train_batch_end(self, batch, logs):
            seen.append((float(logs["loss"]), self.handler.running_logs()["loss"]))

    handler.fit(DATA, batch_size=1, callbacks=[Read()], progress_bar=False)
    losses = [loss for loss, _ in seen]
    means = [sum(losses[:n]) / n for n in range(1, 5)]
    assert [mean for _, mean in seen] == pytest.approx(means)
    assert handler.running_logs() == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_copy_goes_on_by_itself_as_the_original(tmp_path, handler, copied, epochs):
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1)
    handler.auto_save(1, tmp_path, background=True)
    fit = {"batch_size": 2, "ema_decay": 0.9, "progress_bar": False}
    if epochs:
        handler.fit(DATA, epochs=epochs, **fit)
    other = copied(handler)
    other.auto_saver.save_path = tmp_path / "other"
    other.fit(DATA, epochs=1, **fit)
    assert (handler.state.epoch, other.state.epoch) == (epochs, epochs + 1)
    handler.fit(DATA, epochs=1, **fit)
    assert not list(differences(other.get_state_dict(), handler.get_state_dict()))
    other.module.stop_training = True
    assert (other.stop_training, handler.stop_training) == (True, False)
