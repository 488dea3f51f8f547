"""Temporary files and folders, locked while a write is in progress; stale ones are deleted.

A writer holds an advisory lock (``flock``), which the operating system releases however the process
ends. So an unlocked temporary file belongs to a process that was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from fitkit.checkpointing.storage.is_checkpoint import TEMP_SUFFIX

if sys.platform != "win32":  # there an open file can be neither renamed nor removed anyway
    import fcntl


def unique_path(folder: Path) -> Path:
    """An unused name in ``folder``; short, so that it fits wherever the final name fits."""
    return folder / f".{uuid4().hex}{TEMP_SUFFIX}"


def create_locked(folder: Path) -> BinaryIO:
    """A new empty file in ``folder``, locked; it may be read, too."""
    while True:
        file = unique_path(folder).open("x+b")
        _lock(file.fileno(), wait=True)
        if Path(file.name).exists():
            return file
        file.close()  # another process deleted it as stale before it was locked


@contextmanager
def temp_folder(parent: Path) -> Iterator[Path]:
    """Create a locked folder in ``parent``; on exit delete it, unless it was renamed."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_stale(parent)
    descriptor = None
    while descriptor is None:  # another process may delete it before it is locked
        folder = unique_path(parent)
        folder.mkdir()
        descriptor = try_lock(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def try_lock(path: Path) -> int | None:
    """A descriptor that locks ``path`` until it is closed; ``None`` if it is locked or gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return None
    if _lock(descriptor, wait=False) and path.exists():
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
        _lock(descriptor, wait=True)
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
    descriptor = try_lock(path)
    if descriptor is None:
        return
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the lock was taken; a file system without locks never grants one."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
