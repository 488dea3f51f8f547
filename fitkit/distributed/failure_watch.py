"""FailureWatch: detects that another rank has failed while this one waits for a kernel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fitkit.core.errors import RankError


class FailureWatch:
    """A daemon thread that polls for failures of other ranks, and aborts collectives after one.

    A collective of NCCL is a kernel. A host that waits for it does not notice an exception or a
    closed connection of another rank before the timeout; only aborting the communicator ends the
    kernel. The kernel then leaves garbage in its tensors, so ``failure`` is set first, and is
    checked before the next collective or save.

    Args:
        find_failure: returns the failure of another rank, if any; called in the thread.
        abort: aborts collectives that the main thread may wait for; called once.
        seconds: polling interval.
        give_up: called if ``stop`` was not called ``PATIENCE`` seconds after the watch began to
            look for this failure: what the main thread is in does not end.

    Attributes:
        failure: the failure that was found.
    """

    PATIENCE = 3.0
    PATIENCE_AT_WORK = 30.0  # if this rank itself has failed, in another thread
    # So long the main thread may take to notice by itself: gloo can lose the wake-up of a transfer
    # that is under way when its connection is closed (signalException in gloo's tcp/pair.cc).
    GRACE = 0.5

    def __init__(
        self,
        find_failure: Callable[[], RankError | None],
        abort: Callable[[], None],
        seconds: float = 1.0,
        give_up: Callable[[RankError], None] | None = None,
    ) -> None:
        self.failure: RankError | None = None
        self._find_failure, self._abort, self._seconds = find_failure, abort, seconds
        self._give_up = give_up
        self._is_own = False
        self._stopped = threading.Event()
        self._abort_lock = threading.Lock()
        self._is_aborted = False
        self._thread = threading.Thread(target=self._run, name="fitkit-failure-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            began = time.monotonic()
            try:
                found = self._find_failure()
            except RuntimeError:
                # The process that served the store has ended, perhaps normally. Aborting while the
                # main thread destroys its groups could block both threads.
                return
            self.failure = self.failure or found
            if self.failure is not None:
                self._end(self.failure, began)
                return

    def _end(self, failure: RankError, began: float) -> None:
        if self._stopped.wait(self.GRACE):
            return
        self.abort()
        patience = self.PATIENCE_AT_WORK if self._is_own else self.PATIENCE
        left = began + self.GRACE + patience - time.monotonic()
        if self._give_up is not None and not self._stopped.wait(max(left, patience / 3)):
            self._give_up(failure)

    def report(self, failure: RankError, *, is_own: bool) -> None:
        """Let the main thread learn of a failure that another thread of this rank has met.

        ``is_own``: this rank has failed itself, so the main thread may be at work and not waiting.
        """
        self._is_own, self.failure = is_own, failure

    def abort(self) -> None:
        """Abort once; two concurrent aborts would wait for each other inside torch."""
        with self._abort_lock:
            if not self._is_aborted:
                self._is_aborted = True
                self._abort()

    def stop(self) -> None:
        """Stop the thread, and wait until it has ended."""
        self._stopped.set()
        self._thread.join()
