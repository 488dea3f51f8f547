"""SaveQueue: takes one snapshot for all saves that were requested in an event, and writes it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from fitkit.checkpointing.save_queue.file_ownership import FileOwnership
from fitkit.checkpointing.save_queue.replicated_ranks import ReplicatedRanks, SaveCommand
from fitkit.checkpointing.save_queue.save_job import SaveJob
from fitkit.checkpointing.save_queue.save_source import SaveSource
from fitkit.checkpointing.savers.overhead import SaveStats
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.savers.saver import Saver
from fitkit.core.errors import add_note
from fitkit.core.tree import TensorMap
from fitkit.runtime.background_thread import BackgroundThread
from fitkit.runtime.host_staging import HostStaging


class SaveQueue:
    """The requests of one event, and at most one save in flight behind training.

    Args:
        source: the handler.
        ranks: how the ranks of the run save together.

    Attributes:
        files: which files the run may overwrite and remove.
        stats: what saving has cost.
        protected: the file that the run resumed from, until a newer whole checkpoint is durable.
        wants_sync_point: a saver would save if this event were a sync point.
        is_sync_scheduled: the end of the next batch is a sync point.
    """

    wants_sync_point = False
    is_sync_scheduled = False

    def __init__(self, source: SaveSource, ranks: ReplicatedRanks) -> None:
        self._source = source
        self._ranks = ranks
        self.files = FileOwnership(source)
        self._requests: list[SaveRequest] = []
        self._in_flight: SaveJob | None = None
        self._writer: BackgroundThread | None = None
        self._staging: HostStaging | None = None
        self.protected: Path | None = None
        self._is_sync_point = False
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start to count costs for a call of ``fit``, after ``step`` training batches."""
        now = time.monotonic()
        self.stats = SaveStats(now, now, step)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def is_busy(self) -> bool:
        """Whether a save is being written behind training."""
        return self._writer is not None and self._writer.is_busy

    @property
    def is_sync_point(self) -> bool:
        """Whether all ranks handle this event, so that a save can follow; always with one rank."""
        return self._is_sync_point or not self._ranks.needs_sync_point

    def sync_point(self) -> None:
        """Make this event a sync point; called on all ranks."""
        self._is_sync_point = True

    def request_sync_point(self) -> None:
        """Ask for a sync point soon, because a saver of this rank would save."""
        self.wants_sync_point = not self.is_sync_point

    def schedule_sync_point(self) -> None:
        """Make the end of the next batch a sync point; called on all ranks."""
        self.is_sync_scheduled = True

    def add(self, request: SaveRequest) -> None:
        """Add a request for the next ``flush``; those of rank 0 count."""
        if self._ranks.is_main:
            self._requests.append(request)

    def withdraw(self, saver: Saver) -> None:
        """Remove the requests of ``saver``."""
        self._requests = [request for request in self._requests if request.saver is not saver]

    def describe(self, step: int) -> str:
        """What saving has cost and how much is at risk after ``step`` batches; "" without saves."""
        is_requested = any(not request.weights_only for request in self._requests)
        if not self.stats.num_saves and not is_requested:
            return ""
        return self.stats.summary(step, is_requested=is_requested)

    def flush(self) -> None:
        """Save what was requested: write now, or copy the state and write behind training.

        It waits for a save in flight first. With several ranks it acts at sync points only.

        Raises:
            SaveError: a file of this or of an earlier save could not be written, and its saver has
                ``on_error="raise"``; the savers are as before that save. Raised on rank 0.
        """
        if not (self._requests or self._in_flight or self._is_sync_point):
            return
        if self._ranks.needs_sync_point:
            if not self._is_sync_point or self._ranks.is_broken:
                return
            if self._ranks.on_any_rank(self._source.is_non_finite()):
                self._requests = []  # by now the value is in the weights of all ranks
        self._is_sync_point = self.wants_sync_point = self.is_sync_scheduled = False
        self._run_on_main(self._save_requested)

    def wait(self) -> None:
        """Wait until no save is in flight; with a sharded model called on all ranks.

        Raises:
            SaveError: as ``flush``.
        """
        if self._ranks.is_sharded:
            self._run_on_main(self._wait)
        self._wait()

    def finish(self) -> None:
        """Wait until no save is in flight, and free the memory of copies; called on all ranks.

        Raises:
            SaveError: as ``flush``.
        """
        try:
            self._run_on_main(self._wait)
            self._wait()
        finally:
            if self._writer is not None:
                self._writer.close()
            self._in_flight = self._writer = self._staging = None

    def save_now(self, content: dict[str, Any], path: Path) -> None:
        """Write ``content``, which no saver requested; called on all ranks.

        Raises:
            SaveError: it could not be written; on other ranks ``RankError``.
        """
        self._ranks.save_now(content, path, self.files.record())

    def delete_obsolete(self, saver: Saver) -> None:
        """Delete what ``saver`` was about to delete when its state was saved."""
        for path in self.files.unkept(saver.commit(self.protected)):
            if (problem := self.files.remove(path, saver.folder)) is not None:
                warnings.warn(problem, RuntimeWarning, stacklevel=2)

    # ---- one save -------------------------------------------------------------------------------

    def _run_on_main(self, action: Callable[[], None]) -> None:
        self._ranks.run_on_main(action, self._follow, self._source.savers)

    def _save_requested(self) -> None:
        requests, self._requests = self._requests, []
        if not requests:
            if not self.is_busy:
                self._wait()  # report how it ended
            return
        began = time.perf_counter()
        try:
            try:
                self._wait()
            finally:
                if self._in_flight is None:  # a save that failed must not prevent this one
                    self._save(requests)
        finally:
            self.stats.blocked_seconds += time.perf_counter() - began

    def _save(self, requests: list[SaveRequest]) -> None:
        requests = self.files.choose_paths(requests, self.protected)
        if not requests:
            return
        job = SaveJob(requests, self._ranks, self.files, record=self.files.record())
        try:
            self._prepare(job)
        except BaseException as error:  # noqa: BLE001  raised after the rollback
            job.error = error
            self._report(job)
        self._run(job)

    def _prepare(self, job: SaveJob) -> None:
        """Take the state of this moment, in which the savers describe the files of this save."""
        job.mark_written(self._source.savers())
        job.find_present(self.protected)
        command = job.command()
        self._ranks.send(command)
        self._take(job, command)
        for saver in job.savers:
            if job.whole is not None:
                job.saver_states[saver] = self._source.saver_state(saver, job.whole)
            protected = self.protected if saver.saves_weights_only else None
            job.obsolete[saver] = self.files.unkept(saver.commit(protected))

    def _follow(self, command: SaveCommand) -> None:
        """Do what ranks other than 0 do for a save."""
        self._wait()
        job = SaveJob([], self._ranks, self.files)
        self._take(job, command)
        if self._ranks.writes:
            self._run(job)

    def _take(self, job: SaveJob, command: SaveCommand) -> None:
        """Take this rank's state; all ranks do so at the same time."""
        tensor_map: TensorMap = _unchanged
        if command.in_background:
            # the memory is used again by the next save, unless an error leaves it half filled
            job.staging, self._staging = self._staging or HostStaging(), None
            tensor_map = job.staging.reserve
        with self._source.gathered_from_ranks() if command.whole else nullcontext():
            if command.whole and self._ranks.writes:
                job.whole = self._source.take_snapshot(tensor_map)
            if command.weights and self._ranks.writes:
                job.weights = self._source.take_weights(tensor_map)
        if job.staging is not None:
            job.staging.fetch()
            self._staging = job.staging

    def _run(self, job: SaveJob) -> None:
        """Write now, or behind training if the state was copied."""
        if job.staging is not None:
            writer, self._writer = self._writer or BackgroundThread("fitkit-save"), None
            with suppress(RuntimeError):  # no thread can be started: write now
                writer.start(job.run)
                self._writer, self._in_flight = writer, job
                return
        job.run()
        self._report(job)

    def _wait(self) -> None:
        """Wait for the save in flight, and report how it ended."""
        if self._writer is None or self._in_flight is None:
            return
        self._writer.wait()
        job, self._in_flight = self._in_flight, None
        self.stats.behind_seconds += job.seconds
        self._report(job)

    def _report(self, job: SaveJob) -> None:
        """Roll back and warn for what failed, raise the error, announce what is durable."""
        job.rollback()
        if job.error is None and job.requests:
            self.stats.num_saves += 1
            if job.paths(weights_only=False):
                self.protected = None
                self.stats.saved_at = job.taken_at
                self.stats.saved_step = max(request.step for request in job.requests)
        for sentence in job.warnings:
            warnings.warn(sentence, RuntimeWarning, stacklevel=2)
        if job.error is not None:
            add_note(job.error, "the savers' own state is as it was before this save")
            raise job.error
        for path in job.written:
            self._source.announce(path)


def _unchanged(tensor: Any) -> Any:
    return tensor
