"""FileOwnership: which files a run may overwrite and remove, and which process writes them.

A file belongs to the run that its record names. It may be replaced if no saver of the run keeps it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path

from fitkit.checkpointing.save_queue.save_source import SaveSource
from fitkit.checkpointing.savers import filenames
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.savers.saver import PREEMPTED_NAME, Saver
from fitkit.checkpointing.storage import atomic_write, run_record, single_or_sharded
from fitkit.checkpointing.storage.file_version import FileVersion
from fitkit.checkpointing.storage.is_checkpoint import is_torch_file, list_checkpoints
from fitkit.checkpointing.storage.run_lock import RunLock
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.core.errors import CheckpointError, ConfigurationError


class FileOwnership:
    """The files and locks of a handler's savers.

    Args:
        source: the handler.
    """

    def __init__(self, source: SaveSource) -> None:
        self._source = source
        self._locks: list[RunLock] = []
        self._warned: set[Saver] = set()
        self._without_record: frozenset[Path] = frozenset()  # own files of an earlier version
        self._written: dict[
            Path, FileVersion | None
        ] = {}  # own files, which need not be read again

    def record(self) -> RunRecord:
        """The record of a file that is written now."""
        return self._source.identity().at(self._source.position())

    # ---- a call of fit --------------------------------------------------------------------------

    def lock(self) -> None:
        """Lock what the attached savers write; called on rank 0, before anything is looked up.

        Raises:
            ConfigurationError: a living process trains there, or two savers have one path.
        """
        _require_own_names(self._source.savers())
        templates = {
            (saver.folder.resolve(), saver.template): saver for saver in self._source.savers()
        }
        for saver in templates.values():
            lock = RunLock(saver.folder, saver.template)
            self._locks.append(lock)
            lock.take()

    def unlock(self) -> None:
        """Remove the locks."""
        locks, self._locks = self._locks, []
        for lock in reversed(locks):  # the first may have made the folder of another
            lock.release()

    def require_held(self) -> None:
        """Check that no other process has taken over.

        Raises:
            SaveError: one has.
        """
        for lock in self._locks:
            lock.require_held()

    def adopt_killed_start(self, weights_only: Iterable[Path]) -> None:
        """Let a new handler be the run that was killed here before its first whole checkpoint.

        Args:
            weights_only: files that it may have written.
        """
        identity = self._source.identity()
        if identity.run_id is not None:
            return
        records = filter(None, map(run_record.read, weights_only))
        newest = max(records, key=lambda record: record.key, default=None)
        killed = [it.predecessor for it in self._locks if it.predecessor is not None]
        run_id = next((it.run_id for it in killed if it.run_id is not None), None)
        if run_id is not None:
            identity.run_id = run_id
        elif newest is not None:
            identity.adopt(newest)

    def begin(self, resumed: Path | None) -> None:
        """Find out what belongs to this run, and begin a branch of it; called on rank 0.

        Args:
            resumed: the file that the run goes on from.
        """
        own, savers = self.record(), self._source.savers()
        if resumed is not None and run_record.read(resumed) is None:
            at_home = (s for s in savers if s.folder.resolve() in resumed.resolve().parents)
            self._without_record = frozenset(
                path.resolve() for saver in at_home for path in saver.files()
            )
        files = list_checkpoints(folder for saver in savers for folder in saver.folders)
        identity = self._source.identity()
        for path in files:
            record = run_record.read(path)
            if record is None or record.run_id != own.run_id or record.position > own.position:
                identity.branch = max(identity.branch, 1 + (record.branch if record else 0))
        for lock in self._locks:
            lock.name_run(own.run_id)
        for saver in savers:
            saver.forget(lambda path: os.path.lexists(path) and not self.is_own(path))
            self._find_preempted(saver, own.position)

    def _find_preempted(self, saver: Saver, position: tuple[int, ...]) -> None:
        """Let the saver know a file of ``Preempted``, if the run went on from another one."""
        if saver.preempted_path is not None or saver.saves_weights_only:
            return
        for path in list_checkpoints([saver.folder]):
            if filenames.is_version(path.name, PREEMPTED_NAME) and self.is_own(path):
                record = run_record.read(path)
                if record is not None and record.position <= position:
                    saver.preempted_path = path.name

    # ---- one file -------------------------------------------------------------------------------

    def is_own(self, path: Path) -> bool:
        """Whether this run wrote ``path``, as the file itself says."""
        if path in self._written and self._written[path] == FileVersion.of(path):
            return True
        record = run_record.read(path)
        if record is None:
            return path.resolve() in self._without_record and is_torch_file(path)
        return record.run_id == self._source.identity().run_id

    def remember(self, paths: Iterable[Path]) -> None:
        """Note that this run has just written ``paths``."""
        self._written.update((path, FileVersion.of(path)) for path in paths)

    def is_written(self, path: Path, resumed: Path | None) -> bool:
        """Whether ``path`` is intact and from the same save as ``resumed``, before a restart."""
        record = run_record.read(path)
        if record is None or resumed is None:
            return self._source.is_current(path)
        try:
            single_or_sharded.verify(path)
        except CheckpointError:
            return False
        return record == run_record.read(resumed)

    def unkept(self, paths: Iterable[Path]) -> list[Path]:
        """Those of ``paths`` that no saver keeps."""
        savers = self._source.savers()
        return [path for path in paths if not any(saver.keeps(path) for saver in savers)]

    def remove(self, path: Path, top: Path) -> str | None:
        """Remove a checkpoint of this run, and the folders below ``top`` that are empty then.

        Returns:
            a message if it is still there, although it should not be.
        """
        if is_torch_file(path) and not self.is_own(path):
            return None
        problem = single_or_sharded.remove(path, self._source.identity().run_id)
        if problem is None:
            atomic_write.remove_empty_folders(path.parent, top)
        return problem

    # ---- the requests of one event --------------------------------------------------------------

    def choose_paths(
        self, requests: Iterable[SaveRequest], resumed: Path | None
    ) -> list[SaveRequest]:
        """The requests with paths that may be written; a name that is taken gets a suffix.

        Args:
            requests: those of one event.
            resumed: the file that the run went on from, while there is no newer one.
        """
        chosen: list[SaveRequest] = []
        taken: dict[Path, bool] = {}  # whether it is to hold weights only
        for request in sorted(requests, key=lambda request: not request.again):
            path = request.path
            for number in count(2):
                if self._may_write(path, request, taken, resumed):
                    break
                path = filenames.version(request.path, number)
            if path != request.path and request.again:
                continue  # its file was written by somebody else meanwhile
            if path != request.path:
                self._warn_of_name(request, path)
            taken[path.resolve()] = request.weights_only
            chosen.append(replace(request, path=path))
        return chosen

    def _may_write(
        self, path: Path, request: SaveRequest, taken: dict[Path, bool], resumed: Path | None
    ) -> bool:
        if path.resolve() in taken:
            return taken[path.resolve()] == request.weights_only
        if request.weights_only and path.resolve() == resumed:
            return False
        is_free = not os.path.lexists(path) or path.is_dir()  # writing to a folder fails
        if not is_free and not self.is_own(path):
            return False
        if not (is_free or request.again or self._may_replace(path, request)):
            return False
        return not request.preempted or self._claim(path)

    def _claim(self, path: Path) -> bool:
        """Whether no other run that ends now writes ``path``: all use the same name for it."""
        lock = RunLock(path.parent, path.name)
        try:
            lock.take(waits=False)
        except ConfigurationError:
            return False
        self._locks.append(lock)
        return True

    def _may_replace(self, path: Path, request: SaveRequest) -> bool:
        """Whether no saver keeps ``path``, or only one that means to replace its own file."""
        keepers = [saver for saver in self._source.savers() if saver.keeps(path)]
        replaces = request.saver.has_one_name or request.preempted
        return not keepers or (replaces and keepers == [request.saver])

    def _warn_of_name(self, request: SaveRequest, path: Path) -> None:
        saver = request.saver
        if saver not in self._warned:
            self._warned.add(saver)
            warnings.warn(
                f"{saver.name} saves to {str(path)!r}, as {str(request.path)!r} is kept or was not "
                f"written by this run. Further names that are taken get such a suffix too.",
                RuntimeWarning,
                stacklevel=2,
            )


def _require_own_names(savers: Iterable[Saver]) -> None:
    """Raise ``ConfigurationError`` if two savers have one path without placeholders."""
    by_path: dict[Path, Saver] = {}
    for saver in savers:
        path = (saver.folder / saver.template).resolve()
        other = by_path.setdefault(path, saver)
        if other is not saver and saver.template and saver.has_one_name:
            raise ConfigurationError(
                f"two callbacks save to {str(path)!r}, {other.name} and {saver.name}: give each a "
                f"file name of its own, as each file would replace the other's."
            )
