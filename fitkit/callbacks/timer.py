"""Timer: measures the wall time of a run and can limit it."""

from __future__ import annotations

import datetime
import math
import re
import time
from typing import Any

from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs

_FORMAT = re.compile(r"(\d+):(\d{1,2}):(\d{1,2}):(\d{1,2})")
_SECONDS_PER_UNIT = (86400, 3600, 60, 1)


def as_seconds(duration: Any) -> float:
    """A duration in seconds.

    Args:
        duration: a number of seconds, a ``timedelta`` or a string ``"DD:HH:MM:SS"``.

    Raises:
        ConfigurationError: it is none of these, or not above 0.

    >>> as_seconds("01:00:00:30")
    86430.0
    """
    seconds = math.nan
    if isinstance(duration, datetime.timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str) and (match := _FORMAT.fullmatch(duration.strip())):
        units = zip(match.groups(), _SECONDS_PER_UNIT, strict=True)
        seconds = float(sum(int(count) * size for count, size in units))
    elif isinstance(duration, (int, float)) and not isinstance(duration, bool):
        seconds = float(duration)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigurationError(
            f"a duration must be a number of seconds above 0, a datetime.timedelta or a string "
            f"'DD:HH:MM:SS', received {duration!r}."
        )
    return seconds


class Timer(BuiltinCallback):
    """Measures the wall time of a run, and stops training after a maximum duration.

    Training time before a restart counts; the time between the two does not. The run stops after
    the batch in which the duration is reached; a resume with a longer duration continues it.

    Args:
        duration: maximum wall time of the run: seconds above 0, a ``timedelta`` or
            ``"DD:HH:MM:SS"``; ``None``: only measure.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Raises:
        ConfigurationError: the duration is none of these, or not above 0.

    >>> callback = Timer("00:12:00:00")
    """

    has_fixed_state_types = True
    state_fields = ("elapsed_seconds",)

    def __init__(
        self, duration: float | str | datetime.timedelta | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.duration = duration
        self.duration_seconds = None if duration is None else as_seconds(duration)
        self.elapsed_seconds = 0.0
        self._counted_until: float | None = None

    def time_elapsed(self) -> float:
        """Seconds that the run has trained, including those before a restart."""
        if self._counted_until is None:
            return self.elapsed_seconds
        return self.elapsed_seconds + time.monotonic() - self._counted_until

    def time_remaining(self) -> float | None:
        """Seconds until the run stops, at least 0; ``None`` without a duration."""
        if self.duration_seconds is None:
            return None
        return max(self.duration_seconds - self.time_elapsed(), 0.0)

    def _count(self) -> None:
        """Add the time since the last count to ``elapsed_seconds``, which checkpoints hold."""
        if self._counted_until is None:
            return
        now = time.monotonic()
        self.elapsed_seconds += now - self._counted_until
        self._counted_until = now

    def _count_and_stop(self) -> None:
        self._count()
        if self.duration_seconds is None or self.elapsed_seconds < self.duration_seconds:
            return
        if self.handler.state.epoch < self.params.get("last_epoch", math.inf):
            self.handler.state.stop(
                f"Timer: the {self.duration_seconds:g} s of this run are used up", final=False
            )

    def on_train_begin(self, logs: Logs) -> None:
        """Start counting, and stop at once if the resumed run has reached its duration."""
        self._counted_until = time.monotonic()
        self._count_and_stop()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Stop if the duration is reached."""
        self._count_and_stop()

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """Count; validation is never stopped in its middle."""
        self._count()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Stop if the duration is reached."""
        self._count_and_stop()

    def on_exception(self, error: BaseException) -> None:
        """Count, for a checkpoint that is saved now."""
        self._count()

    def on_train_end(self, logs: Logs) -> None:
        """Stop counting."""
        self._count()
        self._counted_until = None
