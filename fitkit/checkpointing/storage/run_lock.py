"""RunLock: a file that says which process trains into a folder under a file template.

It needs no locks of the file system: the file is created exclusively, and says which process made
it. A living process is told from a dead one by its process id on the same machine, and by the time
of the file, which the owner renews, on another one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from fitkit.checkpointing.storage import atomic_write, temp_files
from fitkit.checkpointing.storage.lock_owner import LockOwner
from fitkit.core.errors import ConfigurationError, SaveError

SUFFIX = ".fitkit-lock"
RENEW_SECONDS = 5.0
DEAD_SECONDS = 60.0  # an owner on another machine that has not renewed its lock for so long is dead
_WRITE_SECONDS = 5.0  # between creating a lock file and writing it
_POLL_SECONDS = 0.1
_TRIES, _TRY_SECONDS = 200, 0.02


class RunLock:
    """The lock of a folder and a file template; ``take`` takes it.

    Args:
        folder: the folder; it is made with the lock.
        template: the template of the file names. Other templates have other locks.

    Attributes:
        predecessor: the owner that died with this lock, if one did.
    """

    def __init__(self, folder: Path, template: str) -> None:
        name = hashlib.sha256(template.encode()).hexdigest()[:8]
        self.path = folder / f".{name}{SUFFIX}"
        self.predecessor: LockOwner | None = None
        self._owner: LockOwner | None = None
        self._template = template
        self._made: list[Path] = []  # folders
        self._stop = threading.Event()

    def take(self, *, waits: bool = True) -> None:
        """Take the lock; in a folder that cannot be written to nothing happens.

        Args:
            waits: wait until it is known whether an owner on another machine lives; else it does.

        Raises:
            ConfigurationError: a living process has it.
        """
        missing = [path for path in (self.path.parent, *self.path.parent.parents)
                   if not path.exists()]  # fmt: skip
        owner = LockOwner.this_process(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._made = missing
            self.predecessor = _take(self.path, owner, waits=waits)
        except OSError:
            self._remove_folders()
            return
        self._owner = owner
        renew = threading.Thread(target=self._renew, name="fitkit-lock", daemon=True)
        with suppress(RuntimeError):  # no thread can be started; on this machine nobody needs it
            renew.start()

    def name_run(self, run_id: str) -> None:
        """Write into the lock which run it is, so that a successor can go on with it."""
        if self._owner is not None and self._owner.run_id != run_id:
            self.require_held()
            owner = LockOwner(**{**vars(self._owner), "run_id": run_id})
            with suppress(SaveError):  # a full disk: the first save says so
                _replace(self.path, owner)
                self._owner = owner

    def require_held(self) -> None:
        """Check that this process still has the lock; if the file is gone, make it again.

        Raises:
            SaveError: another process has taken it over.
        """
        if self._owner is None:
            return
        present = None
        with suppress(OSError):  # a write that fails for it says so itself
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    _create(self.path, self._owner)
            present = LockOwner.read(self.path)
        if present is not None and present.token != self._owner.token:
            raise SaveError(
                f"another process has begun to train into {str(self.path.parent)!r} under "
                f"{self._template!r}, as this one seemed dead: {present}. Nothing more is written "
                f"here: end one of the two."
            )

    def release(self) -> None:
        """Remove the lock, and the folders made for it that are empty."""
        owner, self._owner = self._owner, None
        self._stop.set()
        if owner is None or owner.pid != os.getpid():  # a fork has a copy
            return
        with suppress(OSError):
            present = LockOwner.read(self.path)
            if present is not None and present.token == owner.token:
                self.path.unlink()
                _remove_dead(self.path.parent)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            with suppress(OSError):
                os.utime(self.path)


def _take(path: Path, owner: LockOwner, *, waits: bool) -> LockOwner | None:
    """Create the lock file, or take it over from a dead owner, whom it returns.

    Raises:
        OSError: it can be neither created nor read, or it changes all the time.
    """
    for _ in range(_TRIES):
        try:
            _create(path, owner)
            return None
        except FileExistsError:
            pass
        with suppress(FileNotFoundError):  # it was released meanwhile: try again
            token, dead = _token(path), _wait_until_dead(path, waits=waits)
            if token != _token(path):
                continue
            # only who has the lock of this takeover may replace the file
            claim = path.with_name(f"{path.name}.{token[:8]}{SUFFIX}")
            claimer = LockOwner.this_process(claim)
            _take(claim, claimer, waits=waits)
            try:
                if token == _token(path):
                    _replace(path, owner)
                    return dead
            finally:
                claim.unlink(missing_ok=True)
        time.sleep(_TRY_SECONDS)  # a file system may show a file that is gone
    raise OSError(errno.ENOLCK, "a lock file cannot be taken", str(path))


def _create(path: Path, owner: LockOwner) -> None:
    with path.open("xb") as file:
        try:
            file.write(owner.text())
            file.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _replace(path: Path, owner: LockOwner) -> None:
    atomic_write.replace(path, lambda file: file.write(owner.text()))


def _token(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _wait_until_dead(path: Path, *, waits: bool) -> LockOwner | None:
    """Return the owner once it is known to be dead.

    Raises:
        ConfigurationError: it lives.
        FileNotFoundError: the lock was released.
    """
    owner, first = LockOwner.read(path), path.stat().st_mtime
    if owner is not None and owner.is_on_this_machine:
        if owner.lives_here(path):
            raise _in_use(path, owner)
        return owner
    limit = _WRITE_SECONDS if owner is None else DEAD_SECONDS
    began = time.monotonic()  # the times of files may stand still
    while _now(path.parent) - first < limit and time.monotonic() - began < limit:
        if owner is not None and not waits:
            raise _in_use(path, owner)
        time.sleep(_POLL_SECONDS)
        if path.stat().st_mtime != first:
            if owner is not None:
                raise _in_use(path, owner)
            return _wait_until_dead(path, waits=waits)  # by now it is written
    return owner


def _remove_dead(folder: Path) -> None:
    """Remove the locks that killed processes of this machine have left under other templates."""
    for path in folder.glob(f".*{SUFFIX}"):
        with suppress(OSError):
            token, owner = _token(path), LockOwner.read(path)
            is_dead = owner is not None and owner.is_on_this_machine and not owner.lives_here(path)
            if is_dead and token == _token(path):  # nobody has taken it over meanwhile
                path.unlink()


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which the times of its files are of."""
    probe = temp_files.unique_path(folder)
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _in_use(path: Path, owner: LockOwner) -> ConfigurationError:
    return ConfigurationError(
        f"another process trains into {str(path.parent)!r} under the same file names: {owner}. End "
        f"it first, or save into another folder or under other names."
    )
