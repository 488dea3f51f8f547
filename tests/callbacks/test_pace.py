from fitkit.callbacks.pace import Pace
from fitkit.core.fetch_clock import FetchClock


def passed(clock, waiting, working):
    clock.waiting_seconds += waiting
    clock.working_seconds += working


def test_speed_and_waiting_are_those_since_the_beginning():
    clock = FetchClock()
    passed(clock, 100.0, 100.0)
    pace = Pace(clock, samples=1000, epochs_left=3)
    assert pace.speed(1000) == []
    passed(clock, 1.0, 3.0)
    assert pace.speed(1400) == ["100 samples/s", "25% waiting for data"]
    assert pace.speed(1400, seconds=8.0) == ["50.0 samples/s", "12% waiting for data"]


def test_little_waiting_is_not_worth_a_word():
    pace = Pace(clock := FetchClock(), 0, None)
    passed(clock, 0.009, 1.0)
    assert pace.speed(64) == ["63.4 samples/s"]


def test_time_left():
    clock = FetchClock()
    assert Pace(clock, 0, 3).left(40.0) == ["0:02:00 left"]
    assert Pace(clock, 0, 0).left(40.0) == Pace(clock, 0, None).left(40.0) == []
    assert Pace(clock, 0, 9).left(0.1) == []
