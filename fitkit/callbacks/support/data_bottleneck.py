"""DataBottleneck: detects that training mostly waits for its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitkit.core.data_timer import DataTimer

# A window is long enough that a slow start or a short load of the machine does not decide.
WINDOW_BATCHES = 100
WINDOW_SECONDS = 10.0
LARGEST_SHARE = 0.5


class DataBottleneck:
    """Reports once that data loading took most of the time over many batches in a row.

    Args:
        timer: measures data loading.
        settings: ``num_workers`` and ``pin_memory`` of the loader, if it has them; ``None`` for
            data in memory, which is never reported.
        pinning_helps: whether copies to the device are faster from pinned memory.
    """

    def __init__(
        self, timer: DataTimer, settings: Mapping[str, Any] | None, *, pinning_helps: bool = False
    ) -> None:
        self._timer = timer
        self._settings = settings
        self._pinning_helps = pinning_helps
        self._window_start = self._totals()

    def _totals(self) -> tuple[int, float, float]:
        """Batches, waiting and working seconds so far; starting the workers is not waiting."""
        timer = self._timer
        waiting = timer.waiting_seconds - timer.starting_seconds
        return timer.num_batches, waiting, timer.working_seconds

    def check(self) -> str | None:
        """The warning, once, at the end of a window in which training mostly waited."""
        if self._settings is None:
            return None
        totals = self._totals()
        differences = zip(self._window_start, totals, strict=True)
        batches, waiting, working = (end - start for start, end in differences)
        seconds = waiting + working
        if batches < WINDOW_BATCHES or seconds < WINDOW_SECONDS:
            return None
        self._window_start = totals
        if waiting < LARGEST_SHARE * seconds:
            return None
        warning = (
            f"the loader took {waiting / seconds:.0%} of the time of the last {batches:.0f} "
            f"batches, while the model waited: {self._advice(self._settings)}."
        )
        self._settings = None
        return warning

    def _advice(self, settings: Mapping[str, Any]) -> str:
        if "num_workers" not in settings:
            return "make the iterable faster, or pass a Dataset or DataLoader with num_workers"
        num_workers = settings["num_workers"]
        steps = [f"raise num_workers (now {num_workers})"]
        if self._pinning_helps and not settings["pin_memory"]:
            steps.append("set pin_memory=True")
        if num_workers:
            steps.append("set persistent_workers=True if epochs are short")
        steps.append("or do less work per sample, such as decoding it only once")
        return ", ".join(steps)
