"""LoaderAdvice: says so when training mostly waits for its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitkit.core.fetch_clock import FetchClock

# Long enough that neither a slow start nor a moment of other work decides.
WINDOW_BATCHES = 100
WINDOW_SECONDS = 10.0
TOO_LARGE_SHARE = 0.5


class LoaderAdvice:
    """Warns once, when the loader took most of the time of many batches in a row.

    Args:
        clock: what was measured.
        settings: of the loader, as far as it has any; ``None`` for data in memory, about which
            nothing is said.
        pins: whether batches go to a device that gains from pinned memory.
    """

    def __init__(
        self, clock: FetchClock, settings: Mapping[str, Any] | None, *, pins: bool = False
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._pins = pins
        self._begin = self._now()

    def _now(self) -> tuple[int, float, float]:
        """Batches, waiting and working so far; that workers start is no sign of too few."""
        clock = self._clock
        waiting = clock.waiting_seconds - clock.starting_seconds
        return clock.num_batches, waiting, clock.working_seconds

    def look(self) -> str | None:
        """What there is to say now that a window may be full; nothing after the first time."""
        if self._settings is None:
            return None
        now = self._now()
        batches, waiting, working = (b - a for a, b in zip(self._begin, now, strict=True))
        total = waiting + working
        if batches < WINDOW_BATCHES or total < WINDOW_SECONDS:
            return None
        self._begin = now
        if waiting < TOO_LARGE_SHARE * total:
            return None
        said = (
            f"the loader took {waiting / total:.0%} of the time of the last {batches:.0f} batches, "
            f"in which the model waited: {self._remedy(self._settings)}."
        )
        self._settings = None
        return said

    def _remedy(self, settings: Mapping[str, Any]) -> str:
        if "num_workers" not in settings:
            return "make the iterable faster, or pass a Dataset or DataLoader with num_workers"
        number = settings["num_workers"]
        steps = [f"raise num_workers (now {number})"]
        if self._pins and not settings["pin_memory"]:
            steps.append("set pin_memory=True")
        if number:
            steps.append("set persistent_workers=True where epochs are short")
        steps.append("or do less for each sample, such as decoding it once")
        return ", ".join(steps)
