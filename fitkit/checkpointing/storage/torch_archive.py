"""Write a zip archive as ``torch.save`` does, beside a thread that trains.

``torch.save`` returns to Python for each record, its header and its padding, and a thread that
trains meanwhile waits for the interpreter each time. Here whole groups of records are put
together first. Checksums and bytes then take few calls that leave the interpreter to others.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch.serialization import _save  # torch.save takes only files

from fitkit.checkpointing.storage.joined_pickler import JoinedPickler

FOLDER = "archive/"  # of all records; torch takes any name

_PROTOCOL = 2  # the only one that weights_only=True reads
_GROUP_BYTES = 64 << 20  # what is copied from a device at once, before it is written
_ALIGNMENT = 64  # of the values of tensors in the file, for those who map it to memory
_UTF8, _HAS_FOOTER = 0x800, 8  # flags: the name is UTF-8; size and checksum follow the data
_MAX_UINT32 = 0xFFFFFFFF


def write(content: Any, file: BinaryIO, records: Mapping[str, bytes]) -> None:
    """Write ``content`` to an empty ``file`` with the records that ``torch.save`` writes.

    Args:
        content: tensors and plain types.
        file: a buffered file.
        records: further records by name, which torch ignores.

    Raises:
        OSError: the file could not be written.
        RuntimeError: torch cannot save the content.
    """
    archive = _Archive(file)
    pickle_module = SimpleNamespace(Pickler=JoinedPickler)
    _save(content, archive, pickle_module, _PROTOCOL, False)  # type: ignore[no-untyped-call]
    for name, data in {"version": b"3\n", **records}.items():
        archive.write_record(name, data, len(data))
    archive.close()


class _Archive:
    """Takes the place of torch's own writer of archives."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._infos: list[zipfile.ZipInfo] = []
        self._end = 0  # where the next record begins
        self._group: list[tuple[zipfile.ZipInfo, bytes, Any]] = []
        self._group_bytes = 0

    def write_record(self, name: str, data: Any, num_bytes: int) -> None:
        """Add a record: text, bytes, or a storage on the host."""
        info = zipfile.ZipInfo(FOLDER + name)
        info.create_system = info.CRC = 0  # on any system the same content is the same bytes
        info.header_offset, info.file_size, info.compress_size = self._end, num_bytes, num_bytes
        info.flag_bits = _UTF8 | (_HAS_FOOTER if num_bytes else 0)
        header = _header(info)
        self._group.append((info, header, _as_buffer(data)))
        self._end += len(header) + num_bytes + len(_footer(info))
        self._group_bytes += num_bytes
        if self._group_bytes >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        group, self._group, self._group_bytes = self._group, [], 0
        # neither loop runs Python code between two records
        checksums = list(map(zlib.crc32, [data for *_, data in group]))
        pieces: list[Any] = []
        for (info, header, data), checksum in zip(group, checksums, strict=True):
            info.CRC = checksum
            pieces += header, data, _footer(info)
            self._infos.append(info)
        self._file.writelines(pieces)

    def close(self) -> None:
        """Write what is left, and the directory of the archive."""
        self._write_group()
        with zipfile.ZipFile(self._file, "w") as directory:  # it writes nothing else
            directory.filelist = self._infos
            directory.start_dir = self._end


def _header(info: zipfile.ZipInfo) -> bytes:
    """What is before the data of a record; its size makes the data aligned."""
    name, extra = info.filename.encode(), b""
    numbers = [info.file_size] * 2 if info.file_size >= _MAX_UINT32 else []
    numbers += [info.header_offset] if info.header_offset >= _MAX_UINT32 else []
    if numbers:
        extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    begin = info.header_offset + 30 + len(name) + len(extra) + 4
    padding = -begin % _ALIGNMENT
    extra += struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    fixed = struct.pack("<4s5H3I2H", b"PK\3\4", 0, info.flag_bits, *[0] * 6, len(name), len(extra))
    return fixed + name + extra


def _footer(info: zipfile.ZipInfo) -> bytes:
    """What is after the data of a record; nothing, if it has none."""
    if not info.file_size:
        return b""
    is_large = max(info.file_size, info.header_offset) >= _MAX_UINT32
    form = "<4sIQQ" if is_large else "<4sIII"
    return struct.pack(form, b"PK\7\10", info.CRC, info.file_size, info.file_size)


def _as_buffer(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.uint8).set_(data).numpy()
    return data
