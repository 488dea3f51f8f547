"""Temporary files of writes under way, and the sweeping up of those whose process was killed.

A writer holds a lock on its file (``flock``), which the system lets go when the process dies in
whatever way. What nobody holds is litter.
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

if sys.platform != "win32":  # there a file that is open can be neither renamed nor removed
    import fcntl

SUFFIX = ".fitkit-tmp"


def new_name(folder: Path) -> Path:
    """A name in ``folder`` that nothing has; short, so that any name that fits can be written."""
    return folder / f".{uuid4().hex}{SUFFIX}"


def create(folder: Path) -> BinaryIO:
    """A new empty file in ``folder``, locked."""
    while True:
        file = new_name(folder).open("xb")
        _lock(file.fileno(), wait=True)
        if Path(file.name).exists():
            return file
        file.close()  # a sweep came between making and locking it


@contextmanager
def new_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, which no sweep takes; what is left of it afterwards is removed.

    Whoever wants to keep it gives it another name inside ``with``.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    descriptor = None
    while descriptor is None:  # a sweep may come between making and locking it
        folder = new_name(parent)
        folder.mkdir()
        descriptor = try_lock(folder)
    try:
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds ``path`` until it is closed; ``None`` if somebody else does."""
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:  # gone meanwhile
        return None
    if _lock(descriptor, wait=False) and path.exists():
        return descriptor
    os.close(descriptor)
    return None


@contextmanager
def held(file: BinaryIO) -> Iterator[None]:
    """Inside ``with`` no sweep takes ``file``, or a new link to it, also after it is closed."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.dup(file.fileno())  # shares the lock
    try:
        _lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files in ``folder`` that no living process holds."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed can still be written to
        for name in os.listdir(folder):
            if name.startswith(".") and name.endswith(SUFFIX):
                _remove_abandoned(folder / name)  # or it is not ours: it is only litter


def _remove_abandoned(path: Path) -> None:
    descriptor = try_lock(path)
    if descriptor is None:
        return
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Whether the lock is ours now; without locks in the file system nobody ever has it."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
