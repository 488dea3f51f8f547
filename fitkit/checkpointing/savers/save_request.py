"""SaveRequest: what a saver asks the save queue to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SaveRequest:
    """One file that a saver wants to be written.

    Attributes:
        saver: the saver.
        path: the file.
        step: training batches done.
        score: the monitored value that led to the save, or ``None``.
        rank: the value by which retention ranks the file, or ``None``.
        is_lasting: retention keeps the file for good.
        preempted: the process is about to be ended.
        again: made before a restart, and perhaps written then.
    """

    saver: Any
    path: Path
    step: int
    score: float | None = None
    rank: float | None = None
    is_lasting: bool = False
    preempted: bool = False
    again: bool = False

    @property
    def weights_only(self) -> bool:
        """Whether the file holds only the model's weights, as evaluation uses them."""
        return bool(self.saver.saves_weights_only)

    @property
    def in_background(self) -> bool:
        """Whether the file may be written behind training."""
        return bool(self.saver.background) and not self.preempted and not self.again
