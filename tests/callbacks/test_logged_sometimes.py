"""Values that a callback logs in some epochs, and the callbacks and schedules that monitor them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import fitkit
from fitkit import MonitorError
from fitkit.engine.run import RankSync
from fitkit.testing import assert_resumes_exactly

X = torch.ones(8, 4)


class Fid(fitkit.Callback):
    """Logs ``10 - epoch`` in every third epoch."""

    def __init__(self, key, hook="on_epoch_end"):
        self.key = key
        setattr(self, hook, self.log_sometimes)

    def log_sometimes(self, *args):
        epoch = self.handler.state.epoch - (self.handler.state.phase.value == "begin")
        if (epoch + 1) % 3 == 0:
            self.log(self.key, 10.0 - epoch)


def make():
    handler = fitkit.NNHandler(nn.Linear, "cpu", in_features=4, out_features=1, seed=0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_train_loader((X, X[:, :1]), batch_size=4)
    handler.set_val_loader((X, X[:, :1]))
    return handler


MONITORS = {
    "checkpoint": lambda key, **options: fitkit.ModelCheckpoint(
        "best.pth", monitor=key, mode="min", save_best_only=True, **options
    ),
    "stop": lambda key, **options: fitkit.EarlyStopping(key, mode="min", patience=2, **options),
    "plateau": lambda key, **options: fitkit.ReduceLROnPlateau(key, mode="min", **options),
}


@pytest.mark.parametrize("options", [{}, {"strict": False}], ids=str)
@pytest.mark.parametrize("key", ["fid", "val_fid", "val_loss_ema", "score"])
@pytest.mark.parametrize("kind", MONITORS)
def test_it_waits_for_the_value(kind, key, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler, monitor = make(), MONITORS[kind](key, **options)
    if key == "val_loss_ema" and not options:
        # as close to a logged name as a slip of the pen
        with pytest.raises(MonitorError, match=r"Did you mean 'val_loss'.*strict=False"):
            handler.fit(epochs=7, callbacks=[Fid(key), monitor], progress_bar=False)
        return
    history = handler.fit(epochs=7, callbacks=[Fid(key), monitor], progress_bar=False)
    assert len(history.epoch) == 7
    assert monitor.best == 5.0  # of epochs 2 and 5
    if kind != "checkpoint":
        assert monitor.wait == 0


@pytest.mark.parametrize("kind", MONITORS)
def test_a_name_that_nobody_logs_is_an_error_after_the_first_epoch(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = make()
    with pytest.raises(MonitorError, match="monitors 'fid', which is not logged"):
        handler.fit(epochs=3, callbacks=[MONITORS[kind]("fid")], progress_bar=False)
    assert handler.state.epoch == 1


def test_a_run_goes_on_exactly_between_two_values():
    def callbacks():
        return [
            Fid("fid"),
            MONITORS["stop"]("fid", strict=True),
            MONITORS["plateau"]("fid"),
            MONITORS["checkpoint"]("fid"),
        ]

    assert len(assert_resumes_exactly(make, make_callbacks=callbacks, epochs=7, every=3)) > 10


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", ["fid", "val_fid"])
def test_a_scheduler_waits_too(key, strict):
    handler = make()
    handler.set_scheduler(
        lr_scheduler.ReduceLROnPlateau, monitor=key, strict=strict, patience=0, factor=0.5
    )
    rising = Fid(key, "on_test_end")
    history = handler.fit(epochs=6, callbacks=[rising], progress_bar=False)
    assert handler.scheduler.best == 5.0
    assert handler.scheduler.last_epoch == 2
    assert history.history["lr"] == [0.1] * 6


def test_a_scheduler_that_comes_before_the_hook_that_logs_is_an_error():
    handler = make()
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, monitor="fid")
    with pytest.raises(MonitorError, match=r"'fid', which a callback logs in on_epoch_end, after"):
        handler.fit(epochs=6, callbacks=[Fid("fid")], progress_bar=False)
    assert handler.state.epoch == 3


def test_a_scheduler_sees_what_rank_0_logged(monkeypatch):
    monkeypatch.setattr(RankSync, "share_logs", lambda self: self._state.logged.update(fid=2.0))
    handler = make()
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, monitor="fid")
    handler.fit(epochs=1, progress_bar=False)
    assert handler.scheduler.best == 2.0


def test_strict_of_a_scheduler_is_part_of_the_checkpoint(tmp_path):
    for strict in (True, False):
        handler = make()
        handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, monitor="fid", strict=strict)
        handler.save(tmp_path / "saved.pth")
        loaded = fitkit.NNHandler.load(tmp_path / "saved.pth", "cpu")
        assert loaded.parts.scheduler_strict is strict


def test_a_hook_that_compares_buffers_logs_nothing():
    class Cached(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)
            self.register_buffer("cache", torch.zeros(1), persistent=False)

    handler = fitkit.NNHandler(Cached, "cpu", seed=0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    with pytest.raises(MonitorError, match="not logged"):
        handler.fit(
            (X, X[:, :1]), epochs=2, callbacks=[MONITORS["stop"]("fid")], progress_bar=False
        )
