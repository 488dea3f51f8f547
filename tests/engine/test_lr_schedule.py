"""When a learning-rate scheduler steps, and with which value."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from fitkit import Callback, ConfigurationError, MonitorError
from fitkit.callbacks.lambda_callback import LambdaCallback
from fitkit.engine.lr_schedule import Schedule


def fit(handler, data, **options):
    return handler.fit(
        data, **{"progress_bar": False, "batch_size": 2, "shuffle": False, **options}
    )


def rate(handler):
    return handler.optimizer.param_groups[0]["lr"]


def test_by_epoch_it_steps_at_each_epoch_s_end(make_handler, make_data):
    handler = make_handler(lr=1.0)
    handler.set_scheduler(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    rates = []
    watch = LambdaCallback(on_train_batch_begin=lambda batch, logs: rates.append(rate(handler)))
    history = fit(handler, make_data(4), epochs=3, callbacks=[watch])
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert history.history["lr"] == [1.0, 0.5, 0.25]  # the rate that the epoch trained with
    assert rate(handler) == 0.125


def test_by_step_it_steps_with_the_optimizer_and_not_with_the_batch(make_handler, make_data):
    handler = make_handler(lr=1.0)
    handler.set_scheduler(lr_scheduler.StepLR, interval="step", step_size=1, gamma=0.5)
    rates = []
    watch = LambdaCallback(on_train_batch_end=lambda batch, logs: rates.append(rate(handler)))
    fit(handler, make_data(10), gradient_accumulation_steps=2, callbacks=[watch])
    assert rates == [1.0, 0.5, 0.5, 0.25, 0.125]  # the last window is short


def test_the_step_s_end_is_heard_after_the_schedule(make_handler, make_data):
    handler = make_handler(lr=1.0)
    handler.set_scheduler(lr_scheduler.StepLR, interval="step", step_size=1, gamma=0.5)
    rates = []
    watch = LambdaCallback(on_optimizer_step_end=lambda step, logs: rates.append(rate(handler)))
    fit(handler, make_data(4), callbacks=[watch])
    assert rates == [0.5, 0.25]


def test_a_second_fit_goes_on_with_the_schedule(make_handler, make_data):
    once, twice = make_handler(), make_handler()
    for handler in (once, twice):
        handler.set_scheduler(lr_scheduler.CosineAnnealingLR, T_max=4)
    fit(once, make_data(4), epochs=4)
    fit(twice, make_data(4), epochs=1)
    fit(twice, make_data(4), epochs=3)
    assert once.history.history["lr"] == twice.history.history["lr"]


class Watched(lr_scheduler.ReduceLROnPlateau):
    """Records the values that it is stepped with."""

    def __init__(self, optimizer, **kwargs):
        self.values = []
        super().__init__(optimizer, **kwargs)

    def step(self, metrics, epoch=None):
        self.values.append(float(metrics))
        super().step(metrics)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_plateau_steps_only_with_a_fresh_value(make_handler, make_data, every):
    handler = make_handler()
    handler.set_scheduler(Watched)
    history = fit(
        handler, make_data(4), epochs=7, validation_data=make_data(2), validate_every=every
    )
    fresh = [loss for loss in history.history["val_loss"] if loss == loss]
    assert len(fresh) == 7 // every
    assert handler.scheduler.values == fresh


def test_without_validation_a_plateau_watches_the_loss(make_handler, make_data):
    handler = make_handler()
    handler.set_scheduler(Watched)
    history = fit(handler, make_data(4), epochs=3)
    assert handler.scheduler.values == history.history["loss"]


def test_a_plateau_watches_what_it_is_told(make_handler, make_data):
    handler = make_handler()
    handler.add_metric("error", lambda outputs, targets: (outputs - targets).abs().mean())
    handler.set_scheduler(Watched, monitor="val_error")
    history = fit(handler, make_data(4), epochs=2, validation_data=make_data(4))
    assert handler.scheduler.values == history.history["val_error"]


def test_a_plateau_may_watch_what_a_callback_logs(make_handler, make_data):
    class Contributes(Callback):
        def on_train_batch_end(self, batch, logs):
            self.log("score", epoch_score[self.handler.state.epoch])

    epoch_score = [3.0, 2.0]
    handler = make_handler()
    handler.set_scheduler(Watched, monitor="score")
    fit(handler, make_data(4), epochs=2, callbacks=[Contributes()])
    assert handler.scheduler.values == [3.0, 2.0]


def test_a_reduced_rate_is_used_from_the_next_epoch_on(make_handler, make_data):
    handler = make_handler(lr=1e-3)
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=0, threshold=0.9)
    history = fit(handler, make_data(4), epochs=3)
    assert history.history["lr"] == pytest.approx([1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize("monitor", ["val_los", "accuracy", "val_accuracy"])
def test_a_name_that_is_not_logged_is_an_error_that_lists_what_is(make_handler, make_data, monitor):
    handler = make_handler()
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, monitor=monitor)
    sentence = f"monitors '{monitor}', which is not logged; logged are 'loss', 'lr', 'val_loss'"
    with pytest.raises(MonitorError, match=sentence):
        fit(handler, make_data(4), validation_data=make_data(4))


def test_a_validation_name_without_validation_is_an_error_before_training(
    make_handler, make_data, weights
):
    handler = make_handler()
    handler.set_scheduler(lr_scheduler.ReduceLROnPlateau, monitor="val_loss")
    before = weights(handler)
    with pytest.raises(MonitorError, match=r"val_loss.*validation"):
        fit(handler, make_data(4))
    assert torch.equal(weights(handler), before)


@pytest.mark.parametrize(
    ("cls", "options", "sentence"),
    [
        (lr_scheduler.StepLR, {"interval": "batch"}, "one of 'epoch', 'step', received 'batch'"),
        (lr_scheduler.ReduceLROnPlateau, {"interval": "step"}, "pass interval='epoch'"),
        (lr_scheduler.StepLR, {"monitor": "loss"}, "StepLR takes none: leave it out"),
        (torch.optim.SGD, {}, "expects a scheduler class.*received the class SGD"),
        ("StepLR", {}, "received a str"),
        (lr_scheduler.StepLR, {"step_size": 1, "gama": 1}, "Did you mean 'gamma'"),
        (lr_scheduler.StepLR, {}, "missing a required argument: 'step_size'"),
    ],
)
def test_a_scheduler_that_cannot_be_is_refused(make_handler, cls, options, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        make_handler().set_scheduler(cls, **options)


@pytest.mark.parametrize(
    ("cls", "arguments", "sentence"),
    [
        (
            lr_scheduler.OneCycleLR,
            {"max_lr": 1.0, "total_steps": 6},
            "total_steps=6 .* per epoch, 3",
        ),
        (lr_scheduler.CosineAnnealingLR, {"T_max": 6}, "T_max=6 .* pass interval='step'"),
        (
            lr_scheduler.CosineAnnealingLR,
            {"T_max": 3, "interval": "step"},
            "T_max=3 .* per step, 6",
        ),
    ],
)
def test_a_schedule_as_long_as_the_run_by_the_other_interval(
    make_handler, make_data, cls, arguments, sentence
):
    handler = make_handler()
    handler.set_scheduler(cls, **arguments)
    with pytest.warns(UserWarning, match=sentence):
        fit(handler, make_data(8), epochs=3, gradient_accumulation_steps=2)


@pytest.mark.parametrize("arguments", [{"T_max": 3}, {"T_max": 6, "interval": "step"}])
def test_a_schedule_as_long_as_the_run_is_no_trouble(make_handler, make_data, arguments):
    handler = make_handler()
    handler.set_scheduler(lr_scheduler.CosineAnnealingLR, **arguments)
    fit(handler, make_data(8), epochs=3, gradient_accumulation_steps=2)


def test_no_scheduler_is_no_trouble():
    schedule = Schedule(None, interval="epoch")
    schedule.after_optimizer_step()
    schedule.after_epoch({})
