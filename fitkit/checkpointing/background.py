"""BackgroundWriter: files are written behind training, one at a time."""

from __future__ import annotations

import threading
from typing import Protocol


class Job(Protocol):
    """What can be written behind training."""

    error: BaseException | None

    def run(self) -> None:
        """Write; what goes wrong is left in ``error``."""


class BackgroundWriter:
    """One job is under way and one more may wait.

    A job that failed holds up the one that waits, which was made in the belief that the other would
    succeed, until it is collected. The thread ends when it is told to, or when there is nothing to
    do for a while, so that no program waits for it in vain.
    """

    IDLE_SECONDS = 1.0

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._under_way: Job | None = None
        self._waiting: Job | None = None
        self._done: list[Job] = []

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way."""
        return self._under_way is not None

    @property
    def has_news(self) -> bool:
        """Whether a job is done that ``collect`` has not returned yet."""
        return bool(self._done)

    def submit(self, job: Job) -> None:
        """Write ``job`` as soon as the one under way is done; there must be none that waits."""
        with self._changed:
            if self._under_way is not None or any(one.error is not None for one in self._done):
                self._waiting = job
                return
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="fitkit-save")
                thread.start()  # it waits for the lock
                self._thread, self._closing = thread, False
            self._under_way = job
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._under_way is not None or self._closing, self.IDLE_SECONDS
                )
                job = self._under_way
                if job is None:
                    self._thread = None
                    return
            job.run()
            with self._changed:
                self._done.append(job)
                self._under_way = None
                if job.error is None:
                    self._under_way, self._waiting = self._waiting, None
                self._changed.notify_all()

    def take_waiting(self) -> Job | None:
        """Take the job that waits away, if there is one."""
        with self._changed:
            waiting, self._waiting = self._waiting, None
            return waiting

    def collect(self) -> list[Job]:
        """The jobs that are done since the last call, in order."""
        with self._changed:
            done, self._done = self._done, []
            return done

    def wait_for_one(self) -> None:
        """Wait until the job that is under way now is done."""
        with self._changed:
            job = self._under_way
            self._changed.wait_for(lambda: self._under_way is not job or job is None)

    def wait(self) -> None:
        """Wait until no job is under way."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way is None)

    def close(self) -> None:
        """Let the thread end; a later job starts another."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join()
