"""ThroughputMonitor: logs the speed of training and the share of waiting."""

from __future__ import annotations

import time

from fitkit.core.callback import BuiltinCallback
from fitkit.core.logs import Logs


class ThroughputMonitor(BuiltinCallback):
    """Logs the speed of each epoch's training batches, without validation.

    It logs ``samples_per_second`` and ``batches_per_second`` of rank 0, and ``waiting_share``,
    the share (0 to 1) of time between the end of a batch and the beginning of the next: data
    loading, other callbacks, and saving. On an accelerator, which works asynchronously, only the
    two speeds are exact.

    Attributes:
        seconds: training time of the epoch so far, in seconds.
        waiting_seconds: the waiting in it.
        num_batches: batches in it.
        num_samples: samples in it.
    """

    needs_all_ranks = False
    has_fixed_state_types = True
    logs_at_epoch_end = True
    state_fields = ("seconds", "waiting_seconds", "num_batches", "num_samples", "samples_before")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waiting_seconds = 0.0
        self.num_batches = 0
        self.num_samples = 0
        self.samples_before = 0
        self._last_lap = 0.0

    def on_train_begin(self, logs: Logs) -> None:
        """Start the clock also after a resume inside an epoch, without ``on_epoch_begin``."""
        self._last_lap = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Reset the counters."""
        self.seconds = self.waiting_seconds = 0.0
        self.num_batches = self.num_samples = 0
        self.samples_before = self.handler.state.samples_seen
        self._last_lap = time.perf_counter()

    def _lap(self) -> float:
        now = time.perf_counter()
        seconds = now - self._last_lap
        self._last_lap = now
        self.seconds += seconds
        return seconds

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Count the time since the last batch as waiting."""
        self.waiting_seconds += self._lap()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Count the batch."""
        self._lap()
        self.num_batches += 1
        self.num_samples = self.handler.state.samples_seen - self.samples_before

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Log the speed."""
        if self.seconds > 0 and self.handler.world.is_main:
            self.log("samples_per_second", self.num_samples / self.seconds)
            self.log("batches_per_second", self.num_batches / self.seconds)
            self.log("waiting_share", self.waiting_seconds / self.seconds)
