"""One file: written so that it is whole or absent, under one name or several."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fitkit.checkpointing import temporary
from fitkit.core.errors import CheckpointError, SaveError


def write(content: Any, path: Path, also: Iterable[Path] = ()) -> None:
    """Write ``content`` with ``torch.save``; on return the file is whole and durable.

    A temporary file in the same folder is flushed to the device and renamed, then the folder is
    flushed; the folder is made if it is missing. torch stores a checksum (CRC-32) of each record.

    Args:
        content: tensors and plain types.
        path: the file.
        also: further names of it: hard links where possible, else copies.

    Raises:
        SaveError: it could not be written; an earlier file of that name is as it was, and no
            temporary file is left. Names before the one that failed are durable.
    """
    replace(path, lambda file: torch.save(content, file), also)


def replace(path: Path, fill: Callable[[BinaryIO], object], also: Iterable[Path] = ()) -> None:
    """Put what ``fill`` writes in the place of ``path``, then of ``also``; as ``write``.

    Raises:
        SaveError: as ``write``.
    """
    renamed: list[Path] = []
    try:
        with told(path):
            _rename_filled(path, fill)
        renamed.append(path)
        for name in also:
            with told(name):
                _give_name(path, name)
            renamed.append(name)
    finally:  # one flush of a folder makes all its renames durable
        for folder in dict.fromkeys(one.parent for one in renamed):
            flush_folder(folder)


def duplicate(source: Path, path: Path) -> None:
    """Make ``path`` the same file as ``source``: a hard link where possible, else a copy.

    Raises:
        SaveError: as ``write``.
    """
    with told(path):
        _give_name(source, path)
    flush_folder(path.parent)


def _rename_filled(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.sweep(path.parent)
    file = temporary.create(path.parent)
    with temporary.held(file), _removed_on_error(Path(file.name)):
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)


def _give_name(source: Path, path: Path) -> None:
    if path == source:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    name = temporary.new_name(path.parent)
    with source.open("r+b") as file, temporary.held(file):
        with _removed_on_error(name):
            if _link(source, name):
                os.replace(name, path)
                return
        _rename_filled(path, lambda target: shutil.copyfileobj(file, target))


def _link(source: Path, name: Path) -> bool:
    try:
        os.link(source, name)
    except OSError:  # another file system, or one without links
        return False
    return True


@contextlib.contextmanager
def _removed_on_error(name: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Inside ``with`` failing to write ``path`` becomes a ``SaveError``."""
    try:
        yield
    except CheckpointError:
        raise
    # torch's writer reports a full disk as a RuntimeError, Path a null byte as a ValueError
    except (OSError, RuntimeError, ValueError) as error:
        cause = error if isinstance(error, OSError) else (error.__context__ or error)
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise SaveError(
            f"could not save to {str(path)!r}: {reason}. Earlier files are as they were; free "
            f"space or choose a path that can be written, then save again.",
            path,
        ) from error


def flush_folder(folder: Path) -> None:
    """Make a rename durable; file systems that cannot flush a folder need no flush."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # e.g. Windows, where folders cannot be opened
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> str | None:
    """Remove a checkpoint that may be gone already.

    Returns:
        a sentence that says why it is still there; ``None`` if it is not.
    """
    try:
        if path.exists() and not is_checkpoint_like(path):
            return f"{str(path)!r} was to be removed, but is no checkpoint: it was left alone."
        path.unlink(missing_ok=True)
    except OSError as error:
        return (
            f"{str(path)!r} is not needed any more but cannot be removed: "
            f"{error.strerror or error}. Remove it yourself."
        )
    return None


def is_checkpoint_like(path: Path) -> bool:
    """Whether ``path`` is a file that begins like one that ``torch.save`` wrote."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False
