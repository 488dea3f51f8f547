import math

import pytest
import torch
from torch import nn

from fitkit import NNHandler
from fitkit.callbacks.terminate_on_nan import TerminateOnNaN
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [float, torch.tensor])
def test_it_stops_at_the_offending_batch(drive, loss, make):
    driver = drive(TerminateOnNaN(), steps=4)
    driver.begin()
    losses = [make(value) for value in (1.0, loss, 1.0, 1.0)]
    driver.epoch({"loss": 1.0}, [{"loss": value} for value in losses])
    assert driver.state.global_step == 2
    assert driver.state.stopped_non_finite
    assert driver.state.stop_reason == (
        f"TerminateOnNaN: the training loss is {loss} in batch 2 of epoch 1"
    )


def test_finite_losses_go_on(drive):
    driver = drive(TerminateOnNaN(), steps=3)
    driver.begin()
    driver.epoch({}, [{"loss": torch.tensor(value)} for value in (1e38, -1e38, 0.0)])
    assert not driver.state.stopping


class OnDevice:
    """Stands for a scalar on an accelerator and counts how often somebody waits for it."""

    looks = 0

    def __init__(self, value):
        self.value = torch.as_tensor(value)
        self.device = torch.device("cuda")
        self.is_cpu = False

    def __and__(self, other):
        return OnDevice(self.value & other.value)

    def to(self, device):
        return self

    def __bool__(self):
        OnDevice.looks += 1
        return bool(self.value)


@pytest.fixture
def accelerator(monkeypatch):
    """``OnDevice`` counts as a tensor."""
    from fitkit.callbacks import terminate_on_nan

    monkeypatch.setattr(terminate_on_nan, "Tensor", OnDevice)
    monkeypatch.setattr(OnDevice, "looks", 0)
    monkeypatch.setattr(torch, "isfinite", lambda one: OnDevice(math.isfinite(one.value)))


def losses(*values):
    return [{"loss": OnDevice(value)} for value in values]


def test_on_an_accelerator_it_looks_seldom(drive, accelerator):
    driver = drive(TerminateOnNaN(check_every_n_batches=4), steps=9)
    driver.begin()
    driver.epoch({}, losses(*[1.0] * 9))
    assert OnDevice.looks == 3  # twice inside, once at the end of the epoch


def test_on_an_accelerator_it_stops_at_the_next_look(drive, accelerator):
    driver = drive(TerminateOnNaN(check_every_n_batches=4), steps=9)
    driver.begin()
    driver.epoch({}, losses(1.0, math.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    assert driver.state.global_step == 4
    assert "at or before batch 4 of epoch 1" in driver.state.stop_reason


def test_on_an_accelerator_it_looks_at_the_end_of_the_epoch_at_the_latest(drive, accelerator):
    driver = drive(TerminateOnNaN(check_every_n_batches=100), steps=2)
    driver.begin()
    driver.epoch({}, losses(math.nan, 1.0))
    assert driver.state.stopped_non_finite
    assert driver.state.stop_reason.endswith("of epoch 1")


def test_what_was_seen_but_not_looked_at_survives_a_resume(drive, accelerator):
    first = drive(TerminateOnNaN(check_every_n_batches=4), steps=4)
    first.begin()
    for batch, logs in enumerate(losses(1.0, math.nan)):
        first.batch(batch, logs)
    assert not first.state.stopping
    second = first.resume(TerminateOnNaN(check_every_n_batches=4))
    for batch, logs in enumerate(losses(1.0, 1.0), start=2):
        second.batch(batch, logs)
    assert second.state.stopped_non_finite


def test_reading_nothing_but_the_raw_loss(drive):
    class Unread(Logs):
        def __getitem__(self, name):
            raise AssertionError("the hook waits for the device")

    driver = drive(callback := TerminateOnNaN())
    driver.begin()
    callback.on_train_batch_end(0, Unread({"loss": torch.tensor(1.0)}))


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_bad_arguments(number):
    with pytest.raises(ConfigurationError, match="received"):
        TerminateOnNaN(number)


@pytest.mark.parametrize("bad", ["skipped", "without weight"])
def test_a_batch_that_does_not_count_ends_nothing(bad):
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=2, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    if bad == "skipped":
        handler.set_train_step(
            lambda h, b: (
                None if b[1].lt(0).all() else nn.functional.cross_entropy(h.model(b[0]), b[1])
            )
        )
    padding, classes = torch.full((3,), -100), torch.zeros(3).long()
    batches = [(torch.ones(3, 2), padding), (torch.ones(3, 2), classes)]
    handler.fit(batches, callbacks=[TerminateOnNaN()], progress_bar=False)
    assert handler.state.stop_reason is None
    assert handler.state.optimizer_steps == 1
