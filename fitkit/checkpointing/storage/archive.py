"""The zip archive that a file is: its records, their checksums, its pickle. Needs no torch."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

from fitkit.checkpointing.storage.pickle_values import TrapError
from fitkit.checkpointing.storage.zip_records import (
    ChecksumError,
    Record,
    read_directory,
    read_record,
)
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)

Source = Path | io.BytesIO

_PICKLE = "data.pkl"  # the end of its name
_BYTES_WORTH_THREADS = 16 << 20
_MAX_THREADS = 4


def require_file(path: Path) -> None:
    """Raise ``CheckpointError`` unless ``path`` is an ordinary file."""
    if not os.path.exists(path):  # unlike Path.exists, also for a name that no file can have
        raise CheckpointNotFoundError(f"there is no file {str(path)!r}: check the path.")
    if path.is_dir():
        raise CheckpointError(f"{str(path)!r} is a folder: name a file in it.")
    if not path.is_file():  # opening a pipe or a device could wait forever
        raise CheckpointError(f"{str(path)!r} is not an ordinary file: check the path.")


def check_records(
    source: Source, path: Path, *, tensors_too: bool = True
) -> tuple[list[Record], list[bytes]]:
    """Check the records, or only those without tensors' values; return all, and the pickle."""
    try:
        with _open(source) as file:
            records, found = _list_records(file)
            checked = records if tensors_too else _without_tensors(records)
            damaged = _find_damaged(file, path, checked)
            is_read = damaged is None
            pickles = [b"".join(read_record(file, one)) for one in found if is_read]
    except Exception as error:  # of many kinds, for a file that is not a zip archive
        raise DamagedCheckpointError(
            f"{str(path)!r} is not a whole checkpoint: {str(error) or type(error).__name__}. It "
            f"was truncated or is another kind of file; use an earlier checkpoint."
        ) from error
    if damaged is not None:
        raise DamagedCheckpointError(
            f"{str(path)!r} is damaged: the checksum of its record {damaged!r} does not match. Use "
            f"an earlier checkpoint."
        )
    return records, pickles


def _open(source: Source) -> AbstractContextManager[BinaryIO]:
    return source.open("rb") if isinstance(source, Path) else nullcontext(source)


def _list_records(file: BinaryIO) -> tuple[list[Record], list[Record]]:
    """The records of a file in which, as torch writes it, none overlaps; and the pickle."""
    size = file.seek(0, os.SEEK_END)
    records = read_directory(file, size)
    names = {record.filename.lower() for record in records}  # torch ignores the case of names
    pickles = _pickles_among(records)
    if len(names) < len(records) or len(pickles) > 1:
        raise BadZipFile("two records have one name")
    if all(record.header_offset for record in records):
        raise BadZipFile("it does not begin with a record")  # torch reads something else
    if num_bytes(records) > size:
        raise BadZipFile("its records are larger than the file")
    return records, pickles


def _pickles_among(records: Iterable[Record]) -> list[Record]:
    return [one for one in records if one.filename[-len(_PICKLE) :].lower() == _PICKLE]


def tensor_bytes(records: Iterable[Record]) -> dict[str, int]:
    """The sizes of tensors' memory by their keys: what is next to the pickle, as torch reads it."""
    names = [one.filename.removesuffix(".pkl") + "/" for one in _pickles_among(records)]
    return {
        record.filename.removeprefix(name): record.file_size
        for name in names
        for record in records
        if record.filename.startswith(name)
    }


def _without_tensors(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if "/data/" not in record.filename]


def num_bytes(records: Iterable[Record]) -> int:
    """The size of all records."""
    return sum([record.file_size for record in records])


def _find_damaged(file: BinaryIO, path: Path, records: list[Record]) -> str | None:
    """The name of a record whose checksum does not match."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    if threads == 1 or num_bytes(records) < _BYTES_WORTH_THREADS:
        return _first_damaged(file, records)

    def find_in(share: list[Record]) -> str | None:
        with path.open("rb") as own_file:  # several threads cannot share a position
            return _first_damaged(own_file, share)

    shares = [records[first::threads] for first in range(threads)]
    with ThreadPoolExecutor(threads, "fitkit-verify") as pool:  # zlib releases the GIL
        return next(filter(None, pool.map(find_in, shares)), None)


def _first_damaged(file: BinaryIO, records: list[Record]) -> str | None:
    for record in records:
        try:
            for _ in read_record(file, record):
                pass
        except ChecksumError:
            return record.filename
    return None


@contextmanager
def as_read_error(path: Path) -> Iterator[None]:
    """Raise what reading the pickle of ``path`` raises as a ``CheckpointError``."""
    try:
        yield
    except TrapError as error:
        raise DamagedCheckpointError(
            f"{str(path)!r} cannot be used: {error}. Use another checkpoint."
        ) from error
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
