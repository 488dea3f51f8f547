"""One file read: damage is noticed, and nothing in it is executed."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fitkit.core.devices import DEEPEST
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)

Record = zipfile.ZipInfo

# What is written as a tag takes two levels in a file.
_DEEPEST_TAGGED = 2 * DEEPEST + 10
_CHUNK_BYTES = 1 << 20
_LOCAL_HEADER_BYTES = 30
_BYTES_WORTH_THREADS = 16 << 20
_MOST_THREADS = 4
# Tensors may share memory, so together they may be larger than the file, within reason.
_SHARED_TIMES, _SHARED_BYTES = 16, 64 << 20


def verify(path: Path) -> None:
    """Check every checksum that the file carries.

    torch itself checks none when it reads: a flipped bit in a tensor would load silently.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated or altered, or no checkpoint.
    """
    _check_records(path)


def read(path: Path, *, mmap: bool = False) -> Any:
    """The verified content of a file; nothing in it is executed.

    Args:
        path: the file.
        mmap: leave tensors in the file until they are used, which saves one copy of them; the file
            must not be changed in place as long as they are used.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated, altered, or no checkpoint.
        UnsafeCheckpointError: it holds something other than tensors and plain types.
    """
    records = _check_records(path)
    return _load(path, records, mmap=mmap)


def read_without_tensors(path: Path) -> Any:
    """The content of a file with tensors on the device ``"meta"``: shapes and types, no values.

    Only what is read is verified, so this takes milliseconds whatever the file's size.

    Raises:
        CheckpointError: as ``read``.
    """
    records = _check_records(path, tensors_too=False)
    content = _load(path, records, mmap=True)
    return _map_plain(lambda tensor: torch.empty_like(tensor, device="meta"), content)


# ---- checksums ----------------------------------------------------------------------------------


def _check_records(path: Path, *, tensors_too: bool = True) -> list[Record]:
    """All records of the file, after their checksums, or only those of the structure, match."""
    _require_file(path)
    try:
        with path.open("rb") as file:
            records = _records(file)
            broken = _first_broken(file, records if tensors_too else _structure(records))
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
    return records


def _records(file: BinaryIO) -> list[Record]:
    """Records of a checkpoint are stored as they are, one after the other."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise zipfile.BadZipFile("a record is compressed")
    if any(record.file_size != record.compress_size for record in records):
        raise zipfile.BadZipFile("a record has two sizes")
    if sum(record.file_size for record in records) > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile("its records are larger than the file")
    return records


def _structure(records: list[Record]) -> list[Record]:
    """The records that hold no tensors' values."""
    return [record for record in records if "/data/" not in record.filename]


def _first_broken(file: BinaryIO, records: list[Record]) -> str | None:
    """The name of a record whose checksum does not match."""

    def is_whole(record: Record) -> bool:
        return _checksum(file.fileno(), record) == record.CRC

    size = sum(record.file_size for record in records)
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    if threads == 1 or size < _BYTES_WORTH_THREADS:
        return _first_false(records, map(is_whole, records))
    with ThreadPoolExecutor(threads, "fitkit-verify") as pool:  # zlib lets go of the GIL
        return _first_false(records, pool.map(is_whole, records))


def _first_false(records: list[Record], results: Iterable[bool]) -> str | None:
    for record, is_whole in zip(records, results, strict=True):
        if not is_whole:
            return record.filename
    return None


def _checksum(descriptor: int, record: Record) -> int:
    header = os.pread(descriptor, _LOCAL_HEADER_BYTES, record.header_offset)
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"the record {record.filename!r} has no header")
    name_bytes, extra_bytes = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    start = record.header_offset + _LOCAL_HEADER_BYTES
    name = os.pread(descriptor, name_bytes, start)
    if name != record.orig_filename.encode("utf-8"):
        raise zipfile.BadZipFile(f"the record {record.filename!r} has another name in the file")
    start += name_bytes + extra_bytes
    end, checksum = start + record.file_size, 0
    while start < end:
        chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - start), start)
        if not chunk:
            raise zipfile.BadZipFile(f"the record {record.filename!r} is cut off")
        checksum = zlib.crc32(chunk, checksum)
        start += len(chunk)
    return checksum


# ---- content ------------------------------------------------------------------------------------


def _load(path: Path, records: list[Record], *, mmap: bool) -> Any:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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
    problem = _trap_in(content, records)
    if problem is not None:
        raise DamagedCheckpointError(
            f"{str(path)!r} cannot be used: {problem}. Use another checkpoint."
        )
    return content


def _trap_in(content: Any, records: list[Record]) -> str | None:
    """What is harmless to read, but would bring the program down when it is used.

    Without recursion, as the file decides on the depth.
    """
    most_values = 1000 + 2 * sum(one.file_size for one in _structure(records))
    most_bytes = _SHARED_BYTES + _SHARED_TIMES * sum(one.file_size for one in records)
    pending, known = [(content, 0)], set[Any]()
    while pending:
        value, depth = pending.pop()
        most_values -= 1
        if depth > _DEEPEST_TAGGED:
            return f"it is nested more than {DEEPEST} levels deep"
        if most_values < 0:
            return "it holds far more values than bytes"
        if isinstance(value, Tensor):
            if value.is_meta:
                return "it holds a tensor without values"
            most_bytes -= _claimed(value, known)
            if most_bytes < 0:
                return "its tensors claim far more memory than the file has"
        elif isinstance(value, dict):
            pending += [(item, depth + 1) for pair in value.items() for item in pair]
            pending += [(item, depth + 1) for item in getattr(value, "__dict__", {}).values()]
        elif isinstance(value, (list, tuple, set)) and type(value) is not torch.Size:
            pending += [(item, depth + 1) for item in value]
    return None


def _claimed(tensor: Tensor, known: set[Any]) -> int:
    """Bytes of memory that a tensor takes beyond those that are known already."""
    if tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]  # noqa: SLF001  also if not coalesced
        return sum(_claimed(part, known) for part in parts)
    if tensor.layout is not torch.strided:
        return 0
    view = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if view in known:
        return 0
    known.add(view)
    return tensor.nbytes


def _map_plain(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_plain(function, item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map_plain(function, item) for item in value)
    return value


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def _require_file(path: Path) -> None:
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        is_there = False
    if not is_there:
        raise CheckpointNotFoundError(f"there is no file {str(path)!r}: check the path.")
    if path.is_dir():
        raise CheckpointError(f"{str(path)!r} is a folder: name a file in it.")
    if not path.is_file():  # opening a pipe or a device could wait for ever
        raise CheckpointError(f"{str(path)!r} is not an ordinary file: check the path.")
