"""EpochThroughput: the speed of an epoch and the time that is left, as text."""

from __future__ import annotations

from fitkit.core.data_timer import DataTimer
from fitkit.core.formatting import format_rate, format_seconds

_LEAST_SHARE = 0.01  # of waiting that is shown


class EpochThroughput:
    """Measures the speed from the beginning of an epoch, or from a resume in the middle of it.

    Args:
        timer: measures data loading.
        samples: samples seen so far in the run.
        epochs_left: epochs after this one; ``None`` if this epoch was resumed in its middle.
    """

    def __init__(self, timer: DataTimer, samples: int, epochs_left: int | None) -> None:
        self._timer = timer
        self._first_samples = samples
        self._epochs_left = epochs_left
        self._first_waiting = timer.waiting_seconds
        self._first_working = timer.working_seconds

    def speed(self, samples: int, seconds: float | None = None) -> list[str]:
        """Samples per second of training, and the share of waiting for data.

        Args:
            samples: samples seen so far in the run.
            seconds: time of training; ``None``: what the timer measured, without validation.
        """
        waiting = self._timer.waiting_seconds - self._first_waiting
        if seconds is None:
            seconds = waiting + self._timer.working_seconds - self._first_working
        num_samples = samples - self._first_samples
        if seconds <= 0 or not num_samples:
            return []
        share = waiting / seconds
        waiting_text = [f"{share:.0%} waiting for data"] if share >= _LEAST_SHARE else []
        return [f"{format_rate(num_samples / seconds)} samples/s", *waiting_text]

    def time_left(self, epoch_seconds: float) -> list[str]:
        """The time of the remaining epochs, if each takes ``epoch_seconds``."""
        left = (self._epochs_left or 0) * epoch_seconds
        return [f"{format_seconds(left)} left"] if left >= 1.0 else []
