"""Temporary files and folders, locked while a write is in progress; stale ones are deleted.

A writer holds an advisory lock (``flock``), which the operating system releases however the process
ends. So an unlocked temporary file belongs to a process that was killed. Some file systems have no
such locks: everything is written there as well, and a temporary file counts as stale after a day.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from fitkit.checkpointing.storage.is_checkpoint import TEMP_SUFFIX

if sys.platform != "win32":  # there an open file can be neither renamed nor removed anyway
    import fcntl


_TRIES, _WAIT_SECONDS = 100, 0.01
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_STALE_SECONDS = 24 * 3600.0  # where no lock tells


def unique_path(folder: Path) -> Path:
    """An unused name in ``folder``; short, so that it fits wherever the final name fits."""
    return folder / f".{uuid4().hex}{TEMP_SUFFIX}"


def create_locked(folder: Path) -> BinaryIO:
    """A new empty file in ``folder``, locked; it may be read, too."""
    for _ in range(_TRIES):
        file = unique_path(folder).open("x+b")
        _lock(file.fileno(), tries=_TRIES)
        if Path(file.name).exists():
            return file
        file.close()  # another process deleted it as stale before it was locked
    raise _not_lockable(folder)


@contextmanager
def temp_folder(parent: Path) -> Iterator[Path]:
    """Create a locked folder in ``parent``; on exit delete it, unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent)
    folder, descriptor = _create_locked_folder(parent)
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def _create_locked_folder(parent: Path) -> tuple[Path, int]:
    for _ in range(_TRIES):
        folder = unique_path(parent)
        folder.mkdir()
        descriptor = try_lock(folder, else_unlocked=True)
        if descriptor is not None:
            return folder, descriptor
        with contextlib.suppress(OSError):  # another process may have deleted it as stale
            folder.rmdir()
        time.sleep(_WAIT_SECONDS)
    raise _not_lockable(parent)


def _not_lockable(folder: Path) -> OSError:
    return OSError(errno.ENOLCK, "a new temporary file cannot be kept there", str(folder))


def try_lock(path: Path, *, else_unlocked: bool = False) -> int | None:
    """A descriptor that locks ``path`` until it is closed; ``None`` if it is locked or gone.

    Args:
        path: the file or folder.
        else_unlocked: where the file system has no locks, give a descriptor all the same.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return None
    is_locked = _lock(descriptor)
    if (else_unlocked if is_locked is None else is_locked) and path.exists():
        return descriptor
    os.close(descriptor)
    return None


@contextmanager
def keep_locked(file: BinaryIO) -> Iterator[None]:
    """Keep ``file``, and new links to it, locked inside ``with``, also after it is closed."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.dup(file.fileno())  # shares the lock
    try:
        _lock(descriptor, tries=_TRIES)
        yield
    finally:
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Delete the temporary files in ``folder`` that no living process has locked."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed can still be written to
        for name in os.listdir(folder):
            if name.startswith(".") and name.endswith(TEMP_SUFFIX):
                _remove_if_unlocked(folder / name)


def _remove_if_unlocked(path: Path) -> None:
    is_old = time.time() - path.stat().st_mtime > _STALE_SECONDS
    descriptor = try_lock(path, else_unlocked=is_old)
    if descriptor is None:
        return
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, tries: int = 1) -> bool | None:
    """Whether the lock was taken; ``None``: the file system has no locks."""
    if sys.platform == "win32":
        return True
    for number in range(tries):
        if number:
            time.sleep(_WAIT_SECONDS)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _BUSY:
                return None
    return False
