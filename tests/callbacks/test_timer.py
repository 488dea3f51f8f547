import datetime
import math

import pytest

from fitkit.callbacks import timer
from fitkit.callbacks.timer import Timer
from fitkit.core.errors import ConfigurationError


class Clock:
    """A clock that moves only when told."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timer, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        (90, 90.0),
        (0.5, 0.5),
        (datetime.timedelta(minutes=2), 120.0),
        ("00:00:00:07", 7.0),
        ("2:03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5.0),
    ],
)
def test_durations(duration, seconds):
    assert Timer(duration).duration_seconds == seconds


@pytest.mark.parametrize(
    "duration",
    [0, -1, True, math.nan, math.inf, "", "5", "00:00:07", "a:b:c:d", [1], datetime.timedelta(0)],
)
def test_bad_durations(duration):
    with pytest.raises(ConfigurationError, match="'DD:HH:MM:SS', received"):
        Timer(duration)


def test_it_stops_after_the_batch_in_which_the_time_is_used_up(drive, clock):
    driver = drive(one := Timer(10), steps=5)
    driver.begin()
    for batch in range(5):
        clock.sleep(4)
        driver.batch(batch, {"loss": 1.0})
        assert driver.state.stopping == (batch >= 2)
    assert driver.state.stop_reason == "Timer: the 10 s of this run are used up"
    assert not driver.state.stop_is_final
    assert one.time_remaining() == 0


def test_elapsed_and_remaining(drive, clock):
    driver = drive(one := Timer(10))
    assert (one.time_elapsed(), one.time_remaining()) == (0, 10)
    driver.begin()
    clock.sleep(3)
    assert (one.time_elapsed(), one.time_remaining()) == (3, 7)
    driver.end()
    clock.sleep(100)
    assert one.time_elapsed() == 3


def test_without_a_duration_it_only_measures(drive, clock):
    driver = drive(one := Timer())
    driver.begin()
    clock.sleep(1e9)
    driver.epoch({})
    assert not driver.state.stopping
    assert one.time_remaining() is None


def test_time_before_a_restart_counts_and_time_between_does_not(drive, clock):
    first = drive(Timer(10))
    first.begin()
    clock.sleep(6)
    first.batch(0, {"loss": 1.0})
    clock.sleep(1000)  # what follows the last event is not in the file, nor is the time after it
    one = Timer(10)
    second = first.resume(one)
    assert (one.time_elapsed(), second.state.stopping) == (6, False)
    clock.sleep(5)
    second.batch(1, {"loss": 1.0})
    assert second.state.stopping


def test_a_resume_with_no_time_left_stops_at_once_and_with_more_goes_on(drive, clock):
    first = drive(Timer(10))
    first.begin()
    clock.sleep(11)
    first.batch(0, {"loss": 1.0})
    first.state.clear_stop()
    assert first.resume(Timer(10)).state.stopping
    assert not first.resume(Timer(20)).state.stopping


def test_a_complete_run_is_not_stopped(drive, clock):
    driver = drive(Timer(10))
    driver.begin(last_epoch=1)
    for batch in range(2):
        driver.batch(batch, {"loss": 1.0})
    clock.sleep(100)
    driver.end_epoch({})
    assert not driver.state.stopping


def test_a_new_fit_counts_anew(drive, clock):
    driver = drive(one := Timer(10))
    driver.begin()
    clock.sleep(9)
    driver.end()
    driver.begin()
    assert one.time_elapsed() == 0


def test_an_evaluation_outside_training_is_not_counted(drive, clock):
    driver = drive(one := Timer(10))
    driver.begin()
    driver.end()
    clock.sleep(50)
    driver.validate()
    assert one.time_elapsed() == 0
