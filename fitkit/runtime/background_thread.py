"""BackgroundThread: does one piece of work at a time, behind training."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

_NICENESS = 10  # of a core that both want, it has a tenth of what training has


class BackgroundThread:
    """A thread that waits for work, because starting one takes longer than handing work over.

    On Linux, where threads have priorities of their own, it has a lower one than the rest of the
    process. At the end of the process its work is still done.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name, initializer=_lower_priority)
        self._work: Future[object] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether its work is not done."""
        return self._work is not None and not self._work.done()

    def start(self, work: Callable[[], object]) -> None:
        """Call ``work`` in the thread, which must not be busy.

        Raises:
            RuntimeError: no thread can be started.
        """
        try:
            self._work = self._pool.submit(work)
        except RuntimeError:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    def wait(self) -> None:
        """Wait until the work is done; raises what it raised."""
        if self._work is not None:
            self._work.result()

    def close(self) -> None:
        """Wait until the work is done, and end the thread."""
        self._pool.shutdown()


def _lower_priority() -> None:
    if sys.platform != "linux":
        return
    with suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
