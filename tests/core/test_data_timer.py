import time

import pytest
import torch
from torch import nn

import fitkit
from fitkit.core import data_timer
from fitkit.core.data_timer import DataTimer


@pytest.fixture
def now(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(data_timer, "perf_counter", lambda: clock[0])
    return clock


def batches(now, waits):
    for wait in waits:
        now[0] += wait
        yield wait


def test_waiting_and_working_are_told_apart(now):
    clock = DataTimer()
    for _ in range(2):
        for _ in clock.timed(batches(now, [3, 1, 1])):
            now[0] += 10
    assert (clock.waiting_seconds, clock.starting_seconds) == (10, 6)
    assert (clock.working_seconds, clock.num_batches) == (60, 6)


def test_the_last_batch_of_a_pass_that_is_left_counts(now):
    clock = DataTimer()
    timed = clock.timed(batches(now, [1, 1, 1]))
    next(timed)
    now[0] += 5
    timed.close()
    assert (clock.waiting_seconds, clock.working_seconds, clock.num_batches) == (1, 5, 1)


def test_an_empty_pass(now):
    clock = DataTimer()
    assert list(clock.timed([])) == []
    assert clock.num_batches == 0


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        time.sleep(0.01)
        return torch.zeros(3), 0


def make():
    handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=2, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    return handler


class Asks(fitkit.Callback):
    def on_train_begin(self, logs):
        self.clock = self.handler.session.time_data_loading()


@pytest.mark.parametrize("limit", [None, 2])
def test_a_fit_is_measured_for_all_who_ask(limit):
    first, second = Asks(), Asks()
    make().fit(
        Slow(),
        epochs=2,
        batch_size=2,
        callbacks=[first, second],
        steps_per_epoch=limit,
        validation_data=Slow(),
        progress_bar=False,
    )
    clock = first.clock
    assert clock is second.clock
    assert clock.num_batches == 2 * (limit or 3)
    assert clock.waiting_seconds >= 2 * 0.01 * clock.num_batches
    assert clock.working_seconds > 0


def test_nobody_asks_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(DataTimer, "timed", lambda *args: pytest.fail("somebody measures"))
    handler = make()
    handler.fit(Slow(), progress_bar=False, callbacks=[fitkit.ThroughputMonitor()])
    assert handler.session.time_data_loading() is not handler.session.time_data_loading()
