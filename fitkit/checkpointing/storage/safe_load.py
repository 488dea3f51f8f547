"""Load one file safely: every checksum is checked, and nothing in the file is executed.

``torch.load(weights_only=True)`` decides what a pickle may do. It checks no checksum, so a flipped
bit in a tensor would load silently: they are checked here. What would exhaust memory, time or the
stack when it is read or used is refused first (``pickle_scan``).
"""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.storage.pickle_scan import check_pickle
from fitkit.checkpointing.storage.pickle_values import TrapError
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)
from fitkit.core.tree import map_tensors, rebuild_mapping

Record = zipfile.ZipInfo
_Source = Path | io.BytesIO

_IS_FOLDER = 0x10  # torch reads nothing of such a record, and its tensor would be zeros
_CHUNK_BYTES = 1 << 20
_BYTES_WORTH_THREADS = 16 << 20
_MAX_THREADS = 4


def verify(path: Path) -> None:
    """Check every checksum in the file; raises as ``read``."""
    _require_file(path)
    _check_records(path, path)


def read(path: Path, *, mmap: bool = False) -> Any:
    """The verified content of a file; nothing in it is executed.

    Args:
        path: the file.
        mmap: map tensors from the file instead of copying them to memory; the file must not be
            changed in place while they are used.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated, altered, or not a checkpoint.
        UnsafeCheckpointError: it holds something other than tensors and plain types.
    """
    _require_file(path)
    return _load(path, path, *_check_records(path, path), mmap=mmap)


def read_bytes(data: bytes, path: Path) -> Any:
    """The content of ``data``, a part of the file ``path`` whose checksum matches; as ``read``."""
    checked = _check_records(io.BytesIO(data), path, tensors_too=False)
    return _load(io.BytesIO(data), path, *checked, mmap=False)


def read_without_tensors(path: Path) -> Any:
    """The content of a file with tensors on the device ``"meta"``: shapes and types, no values.

    Only what is read is verified, so this takes milliseconds whatever the file's size.
    """
    _require_file(path)
    content = _load(path, path, *_check_records(path, path, tensors_too=False), mmap=True)
    return _without_values(content, {})


# ---- checksums ----------------------------------------------------------------------------------


def _check_records(
    source: _Source, path: Path, *, tensors_too: bool = True
) -> tuple[list[Record], list[bytes]]:
    """Check the records, or only those without tensors' values; return all, and the pickle."""
    try:
        with zipfile.ZipFile(source) as archive:
            size = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
            records = _list_records(archive, size)
            checked = records if tensors_too else _without_tensors(records)
            damaged = _find_damaged(archive, path, checked)
            is_read = damaged is None
            pickles = [archive.read(one) for one in records if is_read and _is_pickle(one)]
    except Exception as error:  # zipfile raises many kinds for a file that is not a zip archive
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


def _list_records(archive: zipfile.ZipFile, size: int) -> list[Record]:
    """The records of a file in which, as torch writes it, none is compressed or overlaps."""
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise zipfile.BadZipFile("a record is compressed")
    if any(record.file_size != record.compress_size for record in records):
        raise zipfile.BadZipFile("a record has two sizes")
    if any(record.external_attr & _IS_FOLDER for record in records):
        raise zipfile.BadZipFile("a record is marked as a folder")
    names = {record.filename.lower() for record in records}  # torch ignores the case of names
    if len(names) < len(records) or sum(map(_is_pickle, records)) > 1:
        raise zipfile.BadZipFile("two records have one name")
    if all(record.header_offset for record in records):
        raise zipfile.BadZipFile("it does not begin with a record")  # torch reads something else
    if _num_bytes(records) > size:
        raise zipfile.BadZipFile("its records are larger than the file")
    return records


def _is_pickle(record: Record) -> bool:
    return record.filename.lower().endswith("data.pkl")


def _tensor_bytes(records: Iterable[Record]) -> dict[str, int]:
    """The sizes of tensors' memory by their keys: what is next to the pickle, as torch reads it."""
    names = [one.filename.removesuffix(".pkl") + "/" for one in records if _is_pickle(one)]
    return {
        record.filename.removeprefix(name): record.file_size
        for name in names
        for record in records
        if record.filename.startswith(name)
    }


def _without_tensors(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if "/data/" not in record.filename]


def _num_bytes(records: Iterable[Record]) -> int:
    return sum(record.file_size for record in records)


def _find_damaged(archive: zipfile.ZipFile, path: Path, records: list[Record]) -> str | None:
    """The name of a record whose checksum does not match."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    if threads == 1 or _num_bytes(records) < _BYTES_WORTH_THREADS:
        return _first_damaged(archive, records)

    def find_in(share: list[Record]) -> str | None:
        with zipfile.ZipFile(path) as own_archive:  # an archive is not safe for several threads
            return _first_damaged(own_archive, share)

    shares = [records[first::threads] for first in range(threads)]
    with ThreadPoolExecutor(threads, "fitkit-verify") as pool:  # zlib releases the GIL
        return next(filter(None, pool.map(find_in, shares)), None)


def _first_damaged(archive: zipfile.ZipFile, records: list[Record]) -> str | None:
    for record in records:
        with archive.open(record) as content:
            try:
                while content.read(_CHUNK_BYTES):
                    pass
            except zipfile.BadZipFile:  # at the end, if the checksum does not match
                return record.filename
    return None


# ---- content ------------------------------------------------------------------------------------


def _load(
    source: _Source, path: Path, records: list[Record], pickles: list[bytes], *, mmap: bool
) -> Any:
    tensors = _tensor_bytes(records)
    try:
        for pickled in pickles:  # one, in a file of torch
            check_pickle(pickled, tensors, _num_bytes(records))
        with warnings.catch_warnings():  # about how a file was written; they may be errors
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
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


def _without_values(value: Any, known: dict[int, Any]) -> Any:
    """``value`` with tensors on the device ``"meta"``; what is used many times stays one object."""
    if id(value) in known:
        return known[id(value)]
    if type(value) in (list, tuple):
        made = type(value)([_without_values(item, known) for item in value])
    elif type(value) in (dict, OrderedDict):
        mapped = {key: _without_values(item, known) for key, item in value.items()}
        made = mapped if type(value) is dict else rebuild_mapping(value, mapped)
    else:
        made = map_tensors(_on_meta, value)
        if made is value:
            return value
    known[id(value)] = made
    return made


def _on_meta(tensor: Tensor) -> Tensor:
    if tensor.is_quantized:  # torch has no empty_like for all of them
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."


def _require_file(path: Path) -> None:
    if not os.path.exists(path):  # unlike Path.exists, also for a name that no file can have
        raise CheckpointNotFoundError(f"there is no file {str(path)!r}: check the path.")
    if path.is_dir():
        raise CheckpointError(f"{str(path)!r} is a folder: name a file in it.")
    if not path.is_file():  # opening a pipe or a device could wait forever
        raise CheckpointError(f"{str(path)!r} is not an ordinary file: check the path.")
