import pytest

from fitkit.callbacks import throughput_monitor
from fitkit.callbacks.throughput_monitor import ThroughputMonitor
from fitkit.core.event import Event
from fitkit.core.logs import Logs


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    monkeypatch.setattr(throughput_monitor, "time", clock := Clock())
    return clock


def train_batch(driver, clock, batch, waiting, working):
    clock.now += waiting
    driver.callbacks.fire(Event.TRAIN_BATCH_BEGIN, batch, Logs())
    clock.now += working
    driver.state.advance_batch(8)
    driver.callbacks.fire(Event.TRAIN_BATCH_END, batch, Logs({"loss": 1.0}))


EXPECTED = {"samples_per_second": 8.0, "batches_per_second": 1.0, "waiting_share": 0.25}


def test_speed_of_training_without_validation(drive, clock):
    driver = drive(ThroughputMonitor())
    driver.begin()
    for _ in range(2):  # the second epoch counts anew
        driver.callbacks.fire(Event.EPOCH_BEGIN, driver.state.epoch, Logs())
        for batch in range(4):
            train_batch(driver, clock, batch, waiting=0.25, working=0.75)
        clock.now += 1000
        driver.validate()
        driver.end_epoch({})
        assert driver.handler.logged == EXPECTED


def test_an_epoch_cut_by_a_restart_is_measured_as_a_whole(drive, clock):
    first = drive(ThroughputMonitor())
    first.begin()
    first.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    train_batch(first, clock, 0, waiting=0.25, working=0.75)
    clock.now += 5000
    second = first.resume(ThroughputMonitor())
    train_batch(second, clock, 1, waiting=0.25, working=0.75)
    second.end_epoch({})
    assert second.handler.logged == EXPECTED


def test_an_epoch_that_took_no_time_logs_no_speed(drive, clock):
    driver = drive(ThroughputMonitor())
    driver.begin()
    driver.callbacks.fire(Event.EPOCH_BEGIN, 0, Logs())
    driver.end_epoch({})
    assert driver.handler.logged == {}
