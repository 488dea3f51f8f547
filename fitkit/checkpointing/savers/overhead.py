"""What saving costs, and how often it may happen for a given share of wall time.

Choosing the frequency from measured costs follows CheckFreq (Mohan et al., FAST '21).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fitkit.core.argument_checks import require_number
from fitkit.core.errors import ConfigurationError


@dataclass
class SaveStats:
    """What saving has cost in this call of ``fit``, and how much work no file holds yet.

    Attributes:
        began: when the call began, like all times here in seconds of the monotonic clock.
        blocked_seconds: how long training has waited for saves.
        behind_seconds: how long saves were written behind training.
        num_saves: snapshots that became durable.
        saved_at: when the newest durable snapshot of the whole state was taken.
        saved_step: training batches done at that moment.
    """

    began: float
    saved_at: float
    saved_step: int
    blocked_seconds: float = 0.0
    behind_seconds: float = 0.0
    num_saves: int = 0

    def summary(self, step: int, *, is_requested: bool) -> str:
        """A few words for the line at the end of an epoch.

        Args:
            step: training batches done.
            is_requested: whether everything until now is about to be saved.
        """
        now = time.monotonic()
        elapsed = max(now - self.began, 1e-9)
        text = f"saving {self.blocked_seconds / elapsed:.1%}"
        if self.behind_seconds:
            text += f" +{self.behind_seconds / elapsed:.1%} behind"
        if not is_requested:
            text += f", {step - self.saved_step} batches ({now - self.saved_at:.0f} s) at risk"
        return text


class OverheadBudget:
    """Decides when to save so that saving takes at most a share of wall time.

    A save costs the time that training waits for it, and the time by which batches take longer
    while it is written behind them. Both are measured; the cost of the first save is estimated from
    its size in bytes, so that it does not exceed the share either.

    Args:
        max_overhead: the share, in ``(0, 1)``.

    Raises:
        ConfigurationError: it is out of range.
    """

    GUESSED_BYTES_PER_SECOND = 100e6

    def __init__(self, max_overhead: float) -> None:
        require_number("max_overhead", max_overhead)
        if not 0.0 < max_overhead < 1.0:
            raise ConfigurationError(
                f"max_overhead must be a share of wall time in (0, 1) such as 0.03, received "
                f"{max_overhead!r}."
            )
        self.max_overhead = float(max_overhead)
        self.begin(0)

    def begin(self, num_bytes: int) -> None:
        """Start a call of ``fit``, whose checkpoints will have about ``num_bytes``."""
        self._began = time.monotonic()
        self._batch_began: float | None = None
        self._is_beside_save = False  # a save was written during the batch, at least in part
        self._waited = 0.0  # of SaveStats, when the batch began
        self._spent = 0.0
        self._last_cost = num_bytes / self.GUESSED_BYTES_PER_SECOND
        self._usual_seconds, self._usual_batches = 0.0, 0

    def is_due(self, stats: SaveStats) -> bool:
        """Whether one more save fits into the share."""
        self._count_waiting(stats)
        elapsed = time.monotonic() - self._began
        return self._spent + self._last_cost <= self.max_overhead * elapsed

    def _count_waiting(self, stats: SaveStats) -> float:
        """Count how long training has waited for saves since the last call."""
        waited, self._waited = stats.blocked_seconds - self._waited, stats.blocked_seconds
        if waited > 0.0:
            self._spent += waited
            self._last_cost = waited
            self._is_beside_save = True
        return waited

    def pause(self) -> None:
        """Do not measure the time until the next training batch."""
        self._batch_began = None

    def count_batch(self, stats: SaveStats, *, is_busy: bool) -> None:
        """Measure a training batch, without the time that training waited for saves.

        Args:
            stats: what saving has cost.
            is_busy: whether a save is being written behind training.
        """
        now, waited = time.monotonic(), self._count_waiting(stats)
        if self._batch_began is not None:
            seconds = now - self._batch_began - waited
            if not self._is_beside_save:
                self._usual_seconds += seconds
                self._usual_batches += 1
            elif self._usual_batches:
                slower = seconds - self._usual_seconds / self._usual_batches
                self._spent += slower
                self._last_cost += slower
        self._batch_began, self._is_beside_save = now, is_busy
