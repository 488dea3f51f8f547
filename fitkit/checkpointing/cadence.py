"""What saving costs, and how often it may happen for a given share of the time.

Choosing the cadence from measured costs follows CheckFreq (Mohan et al., FAST '21).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from fitkit.core.checks import require_number
from fitkit.core.errors import ConfigurationError


@dataclass
class SaveLedger:
    """What saving has cost this call of ``fit``, and how much work no file holds yet.

    Attributes:
        began: when the call began, as all times here in seconds of the monotonic clock.
        blocked_seconds: how long training has waited for saves.
        behind_seconds: how long saves were under way behind training.
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
            lost = step - self.saved_step
            text += f", {lost} batches ({now - self.saved_at:.0f} s) at risk"
        return text


class Saves(Protocol):
    """The saves of a handler, as they are measured."""

    ledger: SaveLedger

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way behind training."""


class Cadence:
    """Says when a save is worth it, so that saving takes at most a share of wall time.

    A save costs the time that training waits for it, and the time by which batches take longer
    while it is written behind them. Both are measured; before the first save its cost is guessed
    from the number of bytes, so that the share is not exceeded by it either.

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
        """A call of ``fit`` begins; a checkpoint will have about ``num_bytes``."""
        self._began = time.monotonic()
        self._batch_began: float | None = None
        self._is_beside = False  # a save was under way in the batch, if only for a part of it
        self._waited = 0.0  # the ledger's count when the batch began
        self._spent = 0.0
        self._last_cost = num_bytes / self.GUESSED_BYTES_PER_SECOND
        self._usual_seconds, self._usual_batches = 0.0, 0

    def is_due(self, saves: Saves) -> bool:
        """Whether one more save fits into the share."""
        self._note_waiting(saves)
        elapsed = time.monotonic() - self._began
        return self._spent + self._last_cost <= self.max_overhead * elapsed

    def _note_waiting(self, saves: Saves) -> float:
        """Count what training has waited for saves since the last look."""
        blocked = saves.ledger.blocked_seconds
        waited, self._waited = blocked - self._waited, blocked
        if waited > 0.0:
            self._spent += waited
            self._last_cost = waited
            self._is_beside = True
        return waited

    def pause(self) -> None:
        """What follows is no training batch."""
        self._batch_began = None

    def count_batch(self, saves: Saves) -> None:
        """A training batch is done; time that training waited for saves is not the batch's."""
        now, waited = time.monotonic(), self._note_waiting(saves)
        if self._batch_began is not None:
            self._count(now - self._batch_began - waited, is_beside=self._is_beside)
        self._batch_began, self._is_beside = now, saves.is_busy

    def _count(self, seconds: float, *, is_beside: bool) -> None:
        if not is_beside:
            self._usual_seconds += seconds
            self._usual_batches += 1
        elif self._usual_batches:
            slower = seconds - self._usual_seconds / self._usual_batches
            self._spent += slower
            self._last_cost += slower
