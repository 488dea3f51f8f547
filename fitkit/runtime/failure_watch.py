"""FailureWatch: hears that another rank has failed while this one waits for a kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fitkit.core.errors import RankError


class FailureWatch:
    """A daemon thread that looks for the failure of another rank, and aborts collectives then.

    A collective of NCCL is a kernel. The host that waits for it hears neither of an exception on
    another rank nor of a closed connection before the time-out; only aborting the communicator
    ends the kernel. What it leaves in its tensors is garbage, so ``failure`` is set first: who
    goes on looks at it before anything is exchanged, or saved, again.

    Args:
        find: the failure of another rank, if there is one; called from the thread.
        abort: ends what the main thread may wait for; called once.
        seconds: from one look to the next.

    Attributes:
        failure: what was found.
    """

    def __init__(
        self,
        find: Callable[[], RankError | None],
        abort: Callable[[], None],
        seconds: float = 1.0,
    ) -> None:
        self.failure: RankError | None = None
        self._find, self._abort, self._seconds = find, abort, seconds
        self._is_over = threading.Event()
        self._aborting = threading.Lock()
        self._is_aborted = False
        self._thread = threading.Thread(target=self._run, name="fitkit-failure-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_over.wait(self._seconds):
            try:
                self.failure = self._find()
            except RuntimeError:
                # The store is gone with the process that held it. That may be an orderly end,
                # and aborting while the main thread destroys its groups could block both.
                return
            if self.failure is not None:
                self.abort()
                return

    def abort(self) -> None:
        """Abort, unless it was done; two at a time would wait for each other inside torch."""
        with self._aborting:
            if not self._is_aborted:
                self._is_aborted = True
                self._abort()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        self._is_over.set()
        self._thread.join()
