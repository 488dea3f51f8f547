"""ThroughputMonitor: how fast training is, and how much of it is waiting."""

from __future__ import annotations

import time
from typing import ClassVar

from fitkit.core.callback import Callback
from fitkit.core.logs import Logs


class ThroughputMonitor(Callback):
    """Logs the speed of each epoch's training batches; validation is not counted.

    It logs ``samples_per_second`` and ``batches_per_second`` of this process, and
    ``waiting_share``, the share (0 to 1) of the time between the end of a batch and the beginning
    of the next: fetching data, other callbacks, and saving. On an accelerator, which works behind
    the program's back, only the two speeds are exact.

    Attributes:
        seconds: training time of the epoch so far, in seconds.
        waiting_seconds: the waiting in it.
        num_batches: batches in it.
        num_samples: samples in it.
    """

    state_fields: ClassVar[tuple[str, ...]] = (
        "seconds",
        "waiting_seconds",
        "num_batches",
        "num_samples",
        "samples_before",
    )

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waiting_seconds = 0.0
        self.num_batches = 0
        self.num_samples = 0
        self.samples_before = 0
        self._counted_until = 0.0

    def on_train_begin(self, logs: Logs) -> None:
        """A resume may land inside an epoch, whose beginning is not heard again."""
        self._counted_until = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Begin to count."""
        self.seconds = self.waiting_seconds = 0.0
        self.num_batches = self.num_samples = 0
        self.samples_before = self.handler.state.samples_seen
        self._counted_until = time.perf_counter()

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds = now - self._counted_until
        self._counted_until = now
        self.seconds += seconds
        return seconds

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Waiting ends."""
        self.waiting_seconds += self._lap()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """A batch is done."""
        self._lap()
        self.num_batches += 1
        self.num_samples = self.handler.state.samples_seen - self.samples_before

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Log the speed."""
        if self.seconds > 0:
            self.log("samples_per_second", self.num_samples / self.seconds)
            self.log("batches_per_second", self.num_batches / self.seconds)
            self.log("waiting_share", self.waiting_seconds / self.seconds)
