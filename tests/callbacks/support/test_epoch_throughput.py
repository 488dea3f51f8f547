from fitkit.callbacks.support.epoch_throughput import EpochThroughput
from fitkit.core.data_timer import DataTimer


def passed(timer, waiting, working):
    timer.waiting_seconds += waiting
    timer.working_seconds += working


def test_speed_and_waiting_are_those_since_the_beginning():
    timer = DataTimer()
    passed(timer, 100.0, 100.0)
    throughput = EpochThroughput(timer, samples=1000, epochs_left=3)
    assert throughput.speed(1000) == []
    passed(timer, 1.0, 3.0)
    assert throughput.speed(1400) == ["100 samples/s", "25% waiting for data"]
    assert throughput.speed(1400, seconds=8.0) == ["50.0 samples/s", "12% waiting for data"]


def test_little_waiting_is_not_worth_a_word():
    throughput = EpochThroughput(timer := DataTimer(), 0, None)
    passed(timer, 0.009, 1.0)
    assert throughput.speed(64) == ["63.4 samples/s"]


def test_time_left():
    timer = DataTimer()
    assert EpochThroughput(timer, 0, 3).time_left(40.0) == ["0:02:00 left"]
    assert (
        EpochThroughput(timer, 0, 0).time_left(40.0)
        == EpochThroughput(timer, 0, None).time_left(40.0)
        == []
    )
    assert EpochThroughput(timer, 0, 9).time_left(0.1) == []
