"""Atomic write: a file is complete or absent, under one name or several."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage import run_record, temp_files, torch_archive
from fitkit.checkpointing.storage.is_checkpoint import is_torch_file
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.core.errors import CheckpointError, SaveError


def write(
    content: Any, path: Path, also: Iterable[Path] = (), record: RunRecord | None = None
) -> None:
    """Write ``content`` as ``torch.save`` does; on return the file is complete and durable.

    A temporary file in the same folder is flushed to the device and renamed, then the folder is
    flushed; a missing folder is made. Each record has a checksum (CRC-32).

    Args:
        content: tensors and plain types.
        path: the file.
        also: further names of the file: hard links where possible, else copies.
        record: which run writes it; ``None``: the file does not say.

    Raises:
        SaveError: it could not be written; an earlier file of that name is unchanged, and no
            temporary file is left. Names before the one that failed are durable.
    """
    records, content = run_record.as_records(record), schema.in_file_order(content)
    replace(path, lambda file: torch_archive.write(content, file, records), also)


def replace(path: Path, fill: Callable[[BinaryIO], object], also: Iterable[Path] = ()) -> None:
    """Replace ``path``, then ``also``, by what ``fill`` writes into an open file; see ``write``."""
    renamed: list[Path] = []
    try:
        with as_save_error(path):
            _write_and_rename(path, fill)
        renamed.append(path)
        for name in also:
            with as_save_error(name):
                link_or_copy(path, name)
            renamed.append(name)
    finally:  # one flush of a folder makes all its renames durable
        for folder in dict.fromkeys(name.parent for name in renamed):
            flush_folder(folder)


def duplicate(source: Path, path: Path) -> None:
    """Make ``path`` the same file as ``source``: a hard link where possible, else a copy."""
    with as_save_error(path):
        link_or_copy(source, path)
    flush_folder(path.parent)


def _write_and_rename(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temp_files.remove_stale(path.parent)
    file = temp_files.create_locked(path.parent)
    with temp_files.keep_locked(file), _removed_on_error(Path(file.name)):
        with file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)


def link_or_copy(source: Path, path: Path) -> None:
    """Give the file ``source`` the further name ``path``; a rename replaces what was there."""
    if path == source:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    link = temp_files.unique_path(path.parent)
    with source.open("r+b") as file, temp_files.keep_locked(file), _removed_on_error(link):
        try:
            os.link(source, link)
        except OSError:  # another file system, or one without links
            _write_and_rename(path, lambda target: shutil.copyfileobj(file, target))
        else:
            os.replace(link, path)
            link.unlink(missing_ok=True)  # a rename does nothing if both are the same file already


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def as_save_error(path: Path) -> Iterator[None]:
    """Raise errors of writing ``path`` as ``SaveError``."""
    try:
        yield
    except CheckpointError:
        raise
    # torch's writer reports a full disk as a RuntimeError, Path a null byte as a ValueError
    except (OSError, RuntimeError, ValueError) as error:
        cause = error if isinstance(error, OSError) else (error.__context__ or error)
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise SaveError(
            f"could not save to {str(path)!r}: {reason}. Earlier files are unchanged; free space "
            f"or choose a path that can be written, then save again.",
            path,
        ) from error


def flush_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the file system can flush a folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # e.g. Windows, where folders cannot be opened
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_empty_folders(folder: Path, top: Path) -> None:
    """Remove ``folder`` and those above it that are empty, below ``top``."""
    with contextlib.suppress(OSError):  # one is not empty
        while top.resolve() in folder.resolve().parents:
            if folder.exists():
                folder.rmdir()
            folder = folder.parent


def remove(path: Path) -> str | None:
    """Delete a checkpoint file, if it exists; return a message if it is still there."""
    if not os.path.lexists(path):  # nothing to do, also where nothing can be written
        return None
    try:
        if path.exists() and not is_torch_file(path):
            return f"{str(path)!r} was to be removed, but it is not a checkpoint: it was kept."
        path.unlink(missing_ok=True)
    except OSError as error:
        return (
            f"{str(path)!r} is not needed any more but cannot be removed: "
            f"{error.strerror or error}. Remove it yourself."
        )
    return None
