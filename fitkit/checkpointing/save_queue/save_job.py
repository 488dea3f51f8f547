"""SaveJob: writes the files that savers requested in one event."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitkit.checkpointing.format.encoding import encode
from fitkit.checkpointing.save_queue.file_ownership import FileOwnership
from fitkit.checkpointing.save_queue.replicated_ranks import ReplicatedRanks, SaveCommand
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.core.errors import SaveError
from fitkit.runtime.host_staging import HostStaging


@dataclass
class SaveJob:
    """One save: its requests, the state to write, and how it ended.

    ``run`` may be called in a thread, so it changes no saver; ``rollback`` does, once it has ended.

    Attributes:
        requests: the files to write; none on ranks other than 0, which write their parts.
        ranks: how this rank and the others write.
        files: decides which files may be removed.
        whole: the whole state of the handler, if a file is to hold it.
        weights: the weights that evaluation uses, if a file is to hold only them.
        staging: the host memory that both are copied in; ``None``: they are the live tensors.
        existing: a file that holds the whole state already; others become links to it.
        present: the files that were written before a restart; they stay as they are.
        record: which run writes the files.
        saver_states: the state of each saver in ``whole``.
        obsolete: the files that each saver deletes once all others are durable.
        taken_at: when the state was taken, in seconds of the monotonic clock.
        written: the files that are durable.
        failed: savers whose file could not be written, although the others were.
        warnings: what the user has to be told.
        error: why the save failed.
        seconds: how long writing took.
    """

    requests: list[SaveRequest]
    ranks: ReplicatedRanks
    files: FileOwnership
    whole: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    staging: HostStaging | None = None
    existing: Path | None = None
    present: set[Path] = field(default_factory=set)
    record: RunRecord | None = None
    saver_states: dict[Saver, dict[str, Any]] = field(default_factory=dict)
    obsolete: dict[Saver, list[Path]] = field(default_factory=dict)
    taken_at: float = field(default_factory=time.monotonic)
    written: list[Path] = field(default_factory=list)
    failed: list[Saver] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.savers: list[Saver] = []
        self._before: dict[Saver, dict[str, Any]] = {}
        for request in self.requests:
            self._include(request.saver)

    def _include(self, saver: Saver) -> None:
        if saver not in self.savers:
            self.savers.append(saver)
            self._before[saver] = saver.file_state()

    def find_present(self, resumed: Path | None) -> None:
        """Find the files of this save that were written before a restart from ``resumed``."""
        again = [request for request in self.requests if request.again]
        self.present = {r.path for r in again if self.files.is_written(r.path, resumed)}
        whole = (r.path for r in again if not r.weights_only and r.path in self.present)
        self.existing = next(whole, None)

    def mark_written(self, savers: Iterable[Saver]) -> None:
        """Let the savers describe their files as they are once this save is done.

        If a file is to hold the whole state, those of ``Preempted`` of all ``savers`` can go.
        """
        for saver in self.savers:
            saver.requested = ()
        if any(not (r.weights_only or r.preempted or r.again) for r in self.requests):
            for saver in (saver for saver in savers if saver.preempted_path is not None):
                self._include(saver)
                saver.supersede_preempted()
        for request in self.requests:
            if not request.again:
                request.saver.mark_written(request)

    def paths(self, *, weights_only: bool) -> list[Path]:
        """The files that hold the whole state, or those that hold only weights."""
        paths = dict.fromkeys(one.path for one in self.requests if not one.weights_only)
        if weights_only:
            weights = dict.fromkeys(one.path for one in self.requests if one.weights_only)
            return [path for path in weights if path not in paths]
        return list(paths)

    def command(self) -> SaveCommand:
        """What every rank has to do for this save."""
        return SaveCommand(
            whole=bool(self._missing(weights_only=False)) and self.existing is None,
            weights=bool(self._missing(weights_only=True)),
            in_background=all(request.in_background for request in self.requests),
        )

    def _missing(self, *, weights_only: bool) -> list[Path]:
        return [it for it in self.paths(weights_only=weights_only) if it not in self.present]

    def rollback(self) -> None:
        """Let the savers that failed describe their files as before this save."""
        for saver in self.failed if self.error is None else self.savers:
            saver.rollback(self._before[saver])

    def run(self) -> None:
        """Write every file, then delete obsolete ones; an error is kept in ``error``."""
        began = time.perf_counter()
        try:
            if self.staging is not None:
                self.staging.wait()
            if self.requests:
                self._write_all()
            else:
                self.ranks.write_parts(self.whole, self.weights)
        except BaseException as error:  # noqa: BLE001  raised where training waits for this save
            self.error = error
        self.seconds = time.perf_counter() - began

    def _write_all(self) -> None:
        with self.ranks.writing():
            while self.requests and not self.written:
                try:
                    self.written = self._write()
                except SaveError as error:
                    self._drop_failed(error)
        for saver, paths in self.obsolete.items():
            for path in (path for path in paths if path not in self.written):
                problem = self.files.remove(path, saver.folder)
                self.warnings += [] if problem is None else [problem]

    def _write(self) -> list[Path]:
        """Serialize each content once; further names of it are links or copies."""
        whole, weights = self._missing(weights_only=False), self._missing(weights_only=True)
        if whole or weights:
            self.files.require_held()
        if self.existing is not None:
            for path in whole:
                single_or_sharded.duplicate(self.existing, path)
        elif whole:
            self._write_to(whole, self.whole, weights_only=False)
        if weights:
            self._write_to(weights, self.weights, weights_only=True)
        return self.paths(weights_only=False) + self.paths(weights_only=True)

    def _write_to(self, paths: list[Path], content: Any, *, weights_only: bool) -> None:
        first, *also = paths
        self.ranks.write(content, first, also, weights_only=weights_only, record=self.record)
        self.files.remember(paths)

    def _drop_failed(self, error: SaveError) -> None:
        """Go on without the savers whose file failed; raises unless they all only warn."""
        failed = [one.saver for one in self.requests if one.path == error.path] or self.savers
        if error.path is None or any(saver.on_error == "raise" for saver in failed):
            raise error
        self.warnings.append(f"{error} Training goes on, as on_error='warn' says.")
        self.failed += failed
        self.requests = [one for one in self.requests if one.saver not in failed]
        for saver in failed:  # the other files must not describe one that does not exist
            self.obsolete.pop(saver, None)
            self.saver_states.get(saver, {}).update(encode(self._before[saver]))
