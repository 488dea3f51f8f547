"""SaveQueue: savers ask; at the end of the event one snapshot is taken, and it serves them all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from fitkit.checkpointing import checkpoint
from fitkit.checkpointing.background import BackgroundWriter
from fitkit.checkpointing.cadence import SaveLedger
from fitkit.checkpointing.plain import Place
from fitkit.checkpointing.save_job import SaveJob, SaveRequest, Write, write_alone
from fitkit.checkpointing.saver import Saver
from fitkit.core.errors import SaveError, add_note
from fitkit.runtime.host_copy import HostCopies


class SaveQueue:
    """The requests of one event, and how they become files.

    Args:
        take_snapshot: the whole state, as it is written; given where each live tensor goes.
        take_weights: the model's weights as they were scored, likewise.
        is_current: whether a file holds the handler's state at the place where it stands now.
        announce: told each path once it is durable.
        key_of: under which key a snapshot holds the state of a saver.
        write: writes a content to a path, and to further names of it.

    Attributes:
        ledger: what saving has cost.
        wishes_to_meet: a saver would save if all processes were there.
        is_invited: all will be there at the end of the next batch.
    """

    wishes_to_meet = False
    is_invited = False

    def __init__(
        self,
        take_snapshot: Callable[[Place], dict[str, Any]],
        take_weights: Callable[[Place], dict[str, Any]],
        is_current: Callable[[Path], bool],
        announce: Callable[[Path], None],
        key_of: Callable[[Saver], str],
        write: Write = write_alone,
    ) -> None:
        self._take_snapshot = take_snapshot
        self._take_weights = take_weights
        self._is_current = is_current
        self._announce = announce
        self._key_of = key_of
        self._write = write
        self._requests: list[SaveRequest] = []
        self._writer: Any = BackgroundWriter()  # of SaveJobs
        self._spare: HostCopies | None = None
        self._origin: Path | None = None
        self.begin(0)

    def begin(self, step: int) -> None:
        """A call of ``fit`` begins after ``step`` training batches."""
        now = time.monotonic()
        self.ledger = SaveLedger(now, now, step)

    def keep_for_now(self, origin: Path) -> None:
        """Keep the file that a run goes on from until a newer one is durable."""
        self._origin = origin.resolve()

    def is_origin(self, path: Path) -> bool:
        """Whether ``path`` is kept until a newer whole checkpoint is durable."""
        return path.resolve() == self._origin

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way behind training."""
        return bool(self._writer.is_busy)

    @property
    def is_meeting(self) -> bool:
        """Whether a save can be answered at the end of this event; one process always can."""
        return True

    def meet(self) -> None:
        """All processes are there at the end of this event; called on each."""

    def wish(self) -> None:
        """A saver of this process would save if all were there."""

    def invite(self) -> None:
        """All processes will be there at the end of the next batch."""

    def add(self, request: SaveRequest) -> None:
        """Take a request; ``settle`` answers it."""
        self._requests.append(request)

    def withdraw(self, saver: Saver) -> None:
        """Forget what ``saver`` has asked for."""
        self._requests = [request for request in self._requests if request.saver is not saver]

    def describe(self, step: int) -> str:
        """What saving has cost and how much is at risk, in a few words; nothing without saves.

        Args:
            step: training batches done.
        """
        is_requested = any(not request.weights_only for request in self._requests)
        if not self.ledger.num_saves and not is_requested:
            return ""
        return self.ledger.summary(step, is_requested=is_requested)

    def settle(self) -> None:
        """Answer what was asked for: write now, or take a copy and write behind training.

        Raises:
            SaveError: a file could not be written, of this or of an earlier save, and its saver
                wants that to end training; the savers are as they were before they asked.
        """
        if self._writer.has_news:
            self._collect()
        if not self._requests:
            return
        requests, self._requests = self._requests, []
        began = time.perf_counter()
        try:
            if all(request.may_wait for request in requests):
                self._start(requests)
            else:
                try:
                    self.wait()
                finally:  # an earlier save that failed is no reason to leave this one out
                    self._write_now(requests)
        finally:
            self.ledger.blocked_seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Wait until no save is under way.

        Raises:
            SaveError: as ``settle``.
        """
        while self._writer.is_busy or self._writer.has_news:
            self._writer.wait()
            self._collect()

    def save_now(self, content: dict[str, Any], path: Path) -> None:
        """Write ``content``, which nobody has asked for; of several processes each calls it.

        Raises:
            SaveError: it could not be written.
        """
        self._write(content, path, [])

    def finish(self) -> None:
        """A call of ``fit`` ends: as ``wait``, and thread and memory of copies are given back.

        Raises:
            SaveError: as ``settle``.
        """
        try:
            self.wait()
        finally:
            self._release()

    def _release(self) -> None:
        self._writer.close()
        self._spare = None

    def let_go(self, saver: Saver) -> None:
        """Remove what ``saver`` was about to remove when its state was saved."""
        for path in saver.answered(self._origin):
            _warn(checkpoint.remove(path))

    # ---- now ------------------------------------------------------------------------------------

    def _write_now(self, requests: list[SaveRequest]) -> None:
        while requests:
            job = self._plan(requests)
            self._fill(job, lambda tensor: tensor)
            job.obsolete = self._obsolete(job)
            job.run()
            if job.error is None:
                self._tell(job)
                return
            requests = self._without_failed(job)

    def _plan(self, requests: list[SaveRequest]) -> SaveJob:
        """Let the savers become what they are once the files are there."""
        for request in requests:
            request.saver.asked = ()
        savers = dict.fromkeys(request.saver for request in requests)
        before = [(saver, saver.planned()) for saver in savers]
        job = SaveJob(requests, before, self._write)
        try:
            for request in requests:
                if not request.again:
                    request.saver.plan(request)
        except BaseException:
            job.put_back()
            raise
        return job

    def _fill(self, job: SaveJob, place: Place) -> None:
        """Take the state that the files are to hold."""
        job.taken_at = time.monotonic()
        again = (r.path for r in job.requests if r.again and not r.weights_only)
        job.here = next((path for path in again if self._is_current(path)), None)
        whole, weights = job.wants
        try:
            with self._together(job):
                job.snapshot = self._take_snapshot(place) if whole else None
                job.weights = self._take_weights(place) if weights else None
        except BaseException as error:
            job.put_back()
            add_note(error, "the savers' own state is as it was before this save")
            raise

    def _together(self, job: SaveJob) -> AbstractContextManager[None]:
        """Inside ``with`` all processes take what ``job`` wants of their state."""
        return nullcontext()

    def _obsolete(self, job: SaveJob) -> list[Path]:
        """What may go once the job is done; what the run came from only when there is newer."""
        spared = None if job.paths(weights_only=False) else self._origin
        return [path for saver, _ in job.before for path in saver.answered(spared)]

    def _without_failed(self, job: SaveJob) -> list[SaveRequest]:
        """The requests of a job that failed without those whose file could not be written.

        Raises:
            BaseException: the error, if it is not one that the savers concerned go on after.
        """
        job.put_back()
        error: Any = job.error
        path = error.path if isinstance(error, SaveError) else None
        failed = [one for one in job.requests if one.path == path] or job.requests
        if path is None or any(one.saver.on_error == "raise" for one in failed):
            add_note(error, "the savers' own state is as it was before this save")
            raise error
        _warn(f"{error} Training goes on, as on_error='warn' says.")
        return [request for request in job.requests if request not in failed]

    def _tell(self, job: SaveJob) -> None:
        self.ledger.num_saves += 1
        if job.paths(weights_only=False):
            self._origin = None
            self.ledger.saved_at = job.taken_at
            self.ledger.saved_step = max(request.step for request in job.requests)
        for problem in job.problems:
            _warn(problem)
        for path in job.written:
            self._announce(path)

    # ---- behind training ------------------------------------------------------------------------

    def _start(self, requests: list[SaveRequest]) -> None:
        self._make_room(requests)
        job = self._plan(requests)
        job.copies, self._spare = self._spare or HostCopies(), None
        self._fill(job, job.copies.reserve)
        job.copies.fetch()
        job.obsolete = self._obsolete(job)
        try:
            self._writer.submit(job)
        except RuntimeError:  # no thread could be started
            job.put_back()
            raise

    def _make_room(self, requests: list[SaveRequest]) -> None:
        """One job may wait: a newer one takes its place, or waits for it to begin."""
        while (waiting := self._writer.take_waiting()) is not None:
            if _supersede(requests, waiting.requests):
                waiting.put_back()
                self._spare = waiting.copies
                return
            self._writer.submit(waiting)
            self._writer.wait_for_one()
            self._collect()

    def _collect(self) -> None:
        """Tell of the saves that are done.

        A job that waits was planned in the belief that the one before would succeed. If that
        failed, it is planned anew, and its snapshot describes the files that there really are.
        """
        jobs: list[SaveJob] = self._writer.collect()
        for job in jobs:
            self.ledger.behind_seconds += job.seconds
            if job.error is None:
                self._spare = job.copies
                self._tell(job)
                continue
            waiting = self._writer.take_waiting()
            if waiting is not None:
                waiting.put_back()
            rest = [(job, self._without_failed(job))]
            if waiting is not None:
                rest.append((waiting, waiting.requests))
            savers = dict.fromkeys(saver for old, _ in rest for saver, _ in old.before)
            for old, requests in rest:
                if requests:
                    self._writer.submit(self._plan_again(old, requests, list(savers)))

    def _plan_again(
        self, old: SaveJob, requests: list[SaveRequest], savers: list[Saver]
    ) -> SaveJob:
        job = self._plan(requests)
        job.take_over(old, {self._key_of(saver): saver for saver in savers})
        job.obsolete = self._obsolete(job)
        return job


def _supersede(newer: list[SaveRequest], older: list[SaveRequest]) -> bool:
    """Whether nothing that waits is worth writing, now that there are newer requests."""
    return all(
        any(new.saver is old.saver and new.saver.supersedes(new, old) for new in newer)
        for old in older
    )


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
