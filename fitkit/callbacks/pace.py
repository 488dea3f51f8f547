"""Pace: how fast an epoch goes, how much of it is waiting, and what is left, in words."""

from __future__ import annotations

from fitkit.callbacks.formatting import format_rate, format_seconds
from fitkit.core.fetch_clock import FetchClock

_LEAST_SHARE = 0.01  # of waiting that is worth a word


class Pace:
    """The speed since the beginning of an epoch, or since a resume inside it.

    Args:
        clock: measures the waiting.
        samples: samples seen so far in the run.
        epochs_left: epochs after this one; ``None`` if this one is not seen from its beginning.
    """

    def __init__(self, clock: FetchClock, samples: int, epochs_left: int | None) -> None:
        self._clock = clock
        self._samples = samples
        self._epochs_left = epochs_left
        self._waiting, self._working = clock.waiting_seconds, clock.working_seconds

    def speed(self, samples: int, seconds: float | None = None) -> list[str]:
        """Samples per second of training, and the share of it that was spent waiting.

        Args:
            samples: samples seen so far in the run.
            seconds: of training; ``None``: as the clock has it, which stands still in validation.
        """
        waiting = self._clock.waiting_seconds - self._waiting
        if seconds is None:
            seconds = waiting + self._clock.working_seconds - self._working
        number = samples - self._samples
        if seconds <= 0 or not number:
            return []
        share = waiting / seconds
        is_waiting = [f"{share:.0%} waiting for data"] if share >= _LEAST_SHARE else []
        return [f"{format_rate(number / seconds)} samples/s", *is_waiting]

    def left(self, seconds: float) -> list[str]:
        """The time of the epochs to come, if they take ``seconds`` as this one."""
        left = (self._epochs_left or 0) * seconds
        return [f"{format_seconds(left)} left"] if left >= 1.0 else []
