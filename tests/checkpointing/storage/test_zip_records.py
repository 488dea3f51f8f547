"""Zip archives, compared with Python's own reader."""

from __future__ import annotations

import io
import random
import struct
import zipfile

import pytest
import torch

from fitkit.checkpointing.storage.zip_records import (
    ChecksumError,
    Record,
    read_directory,
    read_record,
)


def read_all(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Offset and bytes of each record, by our reader."""
    file = io.BytesIO(data)
    records = read_directory(file, len(data))
    found = {one.filename: (one.header_offset, b"".join(read_record(file, one))) for one in records}
    assert len(found) == len(records)
    return found


def read_all_by_python(data: bytes) -> dict[str, tuple[int, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {one.filename: (one.header_offset, archive.read(one)) for one in archive.infolist()}


@pytest.fixture(scope="module")
def saved() -> bytes:
    """A file of torch with a record that Python's ``zipfile`` has added."""
    file = io.BytesIO()
    torch.save({"a": torch.arange(5), "b": [torch.ones(3, 3), "text"]}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo("archive/größe"), "added")
    return file.getvalue()


def test_a_file_of_torch(saved):
    assert read_all(saved) == read_all_by_python(saved)
    assert len(read_all(saved)) > 6


@pytest.mark.parametrize("comment", [b"", b"x", b"x" * 65535, b"PK\5\6" + bytes(10)])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
def test_a_comment_behind_and_other_bytes_before(saved, comment, before):
    data = saved[:-2] + struct.pack("<H", len(comment)) + comment
    try:
        expected = read_all_by_python(before + data)
    except zipfile.BadZipFile:
        with pytest.raises(Exception):  # noqa: B017  of many kinds
            read_all(before + data)
    else:
        assert read_all(before + data) == expected


@pytest.mark.parametrize("share", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_read_is_what_python_reads(saved, share):
    """Bytes of the directory and of headers are changed: then both refuse it, or read the same."""
    rng, same = random.Random(share), 0
    offsets = [offset for offset, _ in read_all(saved).values()]
    directory = saved.index(b"PK\1\2")
    for _ in range(4000):
        data = bytearray(saved)
        for _ in range(rng.choice([1, 1, 2, 3])):
            header = rng.choice(offsets) + rng.randrange(40)
            place = rng.choice([header, rng.randrange(directory, len(data))])
            data[place] = rng.choice([0, 1, 255, rng.randrange(256), data[place] ^ 1])
        try:
            found = read_all(bytes(data))
        except Exception:  # noqa: BLE001  of many kinds
            continue
        assert found == read_all_by_python(bytes(data))
        same += 1
    assert 500 < same < 3500


def test_numbers_of_64_bits(saved):
    """As in files of more than four gigabytes."""
    entries = bytearray()
    at, directory_at = saved.index(b"PK\1\2"), saved.index(b"PK\1\2")
    number = len(read_all(saved))
    for _ in range(number):
        stored, size, name, extra, comment = struct.unpack_from("<2L3H", saved, at + 20)
        entry = bytearray(saved[at : at + 46 + name])
        offset = struct.unpack_from("<L", entry, 42)[0]
        field = struct.pack("<HHHH3Q", 0x7777, 0, 1, 24, size, stored, offset)
        struct.pack_into("<2L", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<H", entry, 30, len(field))
        struct.pack_into("<L", entry, 42, 0xFFFFFFFF)
        entries += entry + field
        at += 46 + name + extra + comment
    end = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, len(entries), directory_at
    )
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, directory_at + len(entries), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    data = saved[:directory_at] + entries + end + locator + last
    assert read_all(data) == read_all_by_python(data) == read_all(saved)


@pytest.mark.parametrize("size", [0, 3, 21, 22, 100, 1000])
def test_what_is_cut_off(saved, size):
    for data in (saved[:size], saved[-size:] if size else b""):
        with pytest.raises(Exception):  # noqa: B017  of many kinds
            read_all(data)


def test_every_byte_of_a_record_counts(saved):
    offset, content = read_all(saved)["archive/data.pkl"]
    begin = saved.index(content, offset)
    for place in range(begin, begin + len(content)):
        data = bytearray(saved)
        data[place] ^= 1
        with pytest.raises(ChecksumError):
            read_all(bytes(data))


def test_a_record_that_ends_behind_the_file():
    with pytest.raises(zipfile.BadZipFile, match="cut off"):
        list(
            read_record(
                io.BytesIO(struct.pack("<4s5H3L2H", b"PK\3\4", *[0] * 10)), Record("", 0, 9, 0)
            )
        )
