"""One file: written so that it is whole or absent, read so that damage is noticed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fitkit.checkpointing import temporary
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    SaveError,
    UnsafeCheckpointError,
)


def write(content: Any, path: Path) -> None:
    """Write ``content`` with ``torch.save``; on return the file is whole and durable.

    A temporary file in the same folder is flushed to the device and renamed, then the folder is
    flushed; the folder is made if it is missing.

    Raises:
        SaveError: it could not be written; an earlier file of that name is as it was, and no
            temporary file is left.
    """
    _replace(path, lambda file: torch.save(content, file))


def duplicate(source: Path, path: Path) -> None:
    """Make ``path`` the same file as ``source``: a hard link where possible, else a copy.

    Raises:
        SaveError: as ``write``.
    """
    if path == source:
        return
    name = temporary.new_name(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with source.open("r+b") as file, temporary.held(file):
            if _link(source, name):
                os.replace(name, path)
                _flush_folder(path.parent)
                return
            _replace(path, lambda target: shutil.copyfileobj(file, target))
    except SaveError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
        raise _save_error(path, error) from error


def _link(source: Path, name: Path) -> bool:
    try:
        os.link(source, name)
    except OSError:  # another file system, or one without links
        return False
    return True


def _replace(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    name: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.sweep(path.parent)
        file = temporary.create(path.parent)
        name = Path(file.name)
        with temporary.held(file):
            with file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        _flush_folder(path.parent)
    except BaseException as error:
        if name is not None:
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)
        # torch's writer reports a full disk as a RuntimeError, Path a null byte as a ValueError
        is_ours = isinstance(error, CheckpointError)
        if isinstance(error, (OSError, RuntimeError, ValueError)) and not is_ours:
            raise _save_error(path, error) from error
        raise


def _save_error(path: Path, error: Exception) -> SaveError:
    cause = error if isinstance(error, OSError) else (error.__context__ or error)
    reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return SaveError(
        f"could not save to {str(path)!r}: {reason}. Earlier files are as they were; free space or "
        f"choose a path that can be written, then save again."
    )


def _flush_folder(folder: Path) -> None:
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


def remove(path: Path) -> None:
    """Remove a file that may be gone already; if it cannot be removed, warn."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(
            f"{str(path)!r} is not needed any more but cannot be removed: {reason}. Remove it "
            f"yourself.",
            RuntimeWarning,
            stacklevel=2,
        )


def is_checkpoint_like(path: Path) -> bool:
    """Whether ``path`` is a file that begins like one that ``torch.save`` wrote."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def verify(path: Path) -> None:
    """Check every checksum that the file carries.

    torch itself checks none when it reads: a flipped bit in a tensor would load silently.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated or altered, or no checkpoint.
    """
    _require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bombs(archive, path)
            broken = archive.testzip()
    except Exception as error:  # whatever zipfile says of bytes that mean nothing
        raise DamagedCheckpointError(
            f"{str(path)!r} is not a whole checkpoint: {error}. It was truncated or is another "
            f"kind of file; use an earlier checkpoint."
        ) from error
    if broken is not None:
        raise DamagedCheckpointError(
            f"{str(path)!r} is damaged: the checksum of its record {broken!r} does not match. Use "
            f"an earlier checkpoint."
        )


def _refuse_bombs(archive: zipfile.ZipFile, path: Path) -> None:
    """Records of a checkpoint are stored as they are, one after the other."""
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise zipfile.BadZipFile("a record is compressed")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise zipfile.BadZipFile("its records are larger than the file")


def read(path: Path, *, map_location: Any = "cpu", mmap: bool = False) -> Any:
    """The verified content of a file; nothing in it is executed.

    Args:
        path: the file.
        map_location: where tensors go, as in ``torch.load``.
        mmap: read tensors from the file only when they are used.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated, altered, or no checkpoint.
        UnsafeCheckpointError: it holds something other than tensors and plain types.
    """
    verify(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{str(path)!r} holds something other than tensors and plain types, which could run "
            f"code when it is read, so it was not read: {_first_line(error)} Save it again with "
            f"tensors and plain types only."
        ) from error
    except Exception as error:
        raise DamagedCheckpointError(
            f"{str(path)!r} cannot be read as a checkpoint: {_first_line(error)} Use an earlier "
            f"checkpoint."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{str(path)!r} is a folder: name a file in it.")
    if not path.exists():
        raise CheckpointNotFoundError(f"there is no file {str(path)!r}: check the path.")
    if not path.is_file():  # opening a pipe or a device could wait for ever
        raise CheckpointError(f"{str(path)!r} is not an ordinary file: check the path.")
