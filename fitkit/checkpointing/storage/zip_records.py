"""Read the records of a zip archive as torch writes it: none is compressed or encrypted.

As strict as Python's ``zipfile``, with which the tests compare it, and several times as fast for an
archive of hundreds of records.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO, NamedTuple
from zipfile import BadZipFile

_END = Struct("<4s4H2LH")  # of the archive
_LOCATOR_64 = Struct("<4sLQL")  # before it, if there is an end of another form, before this one
_END_64 = Struct("<4sQ2H2L4Q")
_ENTRY = Struct("<4s2x3H4x3L3H4x2L")  # of the directory
_HEADER = Struct("<4s5H3L2H")  # before the bytes of a record
_FIELD, _NUMBER_64 = Struct("<2H"), Struct("<Q")  # of what is extra in an entry
_ELSEWHERE, _IN_64_BITS = 0xFFFFFFFF, 1  # a number that is in an extra field; its kind
_MAX_COMMENT_BYTES = (1 << 16) - 1

_MAX_VERSION = 63  # of the format that is needed to read it
_IS_UTF8, _IS_UNREADABLE = 0x800, 0x1 | 0x20 | 0x40  # encrypted, or a patch
_IS_FOLDER = 0x10  # torch reads nothing of such a record, and its tensor would be zeros
_CHUNK_BYTES = 1 << 20


class Record(NamedTuple):
    """A record of an archive."""

    filename: str
    header_offset: int
    file_size: int
    crc32: int


def read_directory(file: BinaryIO, file_bytes: int) -> list[Record]:
    """All records of an archive.

    Raises:
        Exception: the file is not an archive as torch writes it; zipfile's ``BadZipFile`` or a kind
            that comes from a value that is not valid.
    """
    data, shift = _find_directory(file, file_bytes)
    records, at, unpack = [], 0, _ENTRY.unpack_from
    while at < len(data):
        (signature, needed, flags, method, crc32, stored_size, size,
         name_bytes, extra_bytes, comment_bytes, attributes, offset) = unpack(data, at)  # fmt: skip
        name_end = at + _ENTRY.size + name_bytes
        name = _decode(data[at + _ENTRY.size : name_end], flags)
        at = name_end + extra_bytes + comment_bytes
        if extra_bytes:
            extra = data[name_end : name_end + extra_bytes]
            size, stored_size, offset = _read_64(extra, size, stored_size, offset)
        if signature != b"PK\1\2" or needed > _MAX_VERSION or at > len(data):
            raise BadZipFile("its directory is not valid")
        if method:
            raise BadZipFile("a record is compressed")
        if size != stored_size:
            raise BadZipFile("a record has two sizes")
        if attributes & _IS_FOLDER:
            raise BadZipFile("a record is marked as a folder")
        if flags & _IS_UNREADABLE:
            raise BadZipFile("a record is encrypted")
        records.append(Record(name, offset + shift, size, crc32))
    return records


def _find_directory(file: BinaryIO, file_bytes: int) -> tuple[bytes, int]:
    """The directory, and how many bytes precede the archive in the file."""
    tail = _read_at(file, max(file_bytes - _END.size, 0), _END.size)
    if tail[:4] != b"PK\5\6" or tail[-2:] != b"\0\0":  # there may be a comment
        tail = _read_at(file, max(file_bytes - _END.size - _MAX_COMMENT_BYTES, 0), file_bytes)
        tail = tail[max(tail.rfind(b"PK\5\6"), 0) :]
    if len(tail) < _END.size or tail[:4] != b"PK\5\6":
        raise BadZipFile("File is not a zip file")
    end = file_bytes - len(tail)
    size, offset = _END.unpack_from(tail)[5:7]
    before = end - _LOCATOR_64.size - _END_64.size
    if before >= 0:
        data = _read_at(file, before, _END_64.size + _LOCATOR_64.size)
        if data[:4] == b"PK\6\6" and data[_END_64.size :][:4] == b"PK\6\7":
            end, (size, offset) = before, _END_64.unpack_from(data)[8:10]
    if size > end:
        raise BadZipFile("its directory is larger than the file")
    return _read_at(file, end - size, size), end - size - offset


def _read_64(extra: bytes, *numbers: int) -> list[int]:
    """The numbers of an entry, those of 64 bits from its extra fields."""
    found = list(numbers)
    while len(extra) >= _FIELD.size:
        kind, size = _FIELD.unpack_from(extra)
        field, extra = extra[_FIELD.size :][:size], extra[_FIELD.size + size :]
        if len(field) < size:
            raise BadZipFile("an extra field is cut off")
        for place, number in enumerate(found):
            if kind == _IN_64_BITS and number == _ELSEWHERE:
                (found[place],) = _NUMBER_64.unpack_from(field)
                field = field[_NUMBER_64.size :]
    return found


def read_record(file: BinaryIO, record: Record) -> Iterator[bytes]:
    """The bytes of a record in parts; ``ChecksumError`` at the end if they are damaged."""
    header = _HEADER.unpack(_read_at(file, record.header_offset, _HEADER.size))
    signature, _, flags, *_, name_bytes, extra_bytes = header
    name = _decode(file.read(name_bytes), flags)
    file.seek(extra_bytes, 1)
    if signature != b"PK\3\4" or name != record.filename:
        raise BadZipFile(f"the record {record.filename!r} is not where the directory says")
    crc32, left = 0, record.file_size
    while left:
        data = file.read(min(left, _CHUNK_BYTES))
        if not data:
            raise BadZipFile(f"the record {record.filename!r} is cut off")
        crc32, left = zlib.crc32(data, crc32), left - len(data)
        yield data
    if crc32 != record.crc32:
        raise ChecksumError


class ChecksumError(BadZipFile):
    """The bytes of a record do not match its checksum."""


def _read_at(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _decode(name: bytes, flags: int) -> str:
    if 0 in name:
        raise BadZipFile("a name has a zero byte")
    return name.decode("utf-8" if flags & _IS_UTF8 or name.isascii() else "cp437")
