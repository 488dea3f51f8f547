"""The chunks of one rank: written beside those of others, read where they are needed."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from fitkit import CheckpointError, DamagedCheckpointError
from fitkit.checkpointing.storage.shard_chunks import read_part, write_chunks

PATH = Path("m.pth")


def test_the_checksum_of_a_chunk_is_that_of_its_bytes(tmp_path):
    index = write_chunks({"a": torch.ones(3, 2), "b": torch.arange(5)}, tmp_path, 7)
    data = (tmp_path / "__7_0.distcp").read_bytes()
    chunks = [index.tensors[key].chunks[0] for key in "ab"]
    for chunk in chunks:
        assert zlib.crc32(data[chunk.at : chunk.at + chunk.bytes]) == chunk.crc32
    assert chunks[0].at + chunks[0].bytes == chunks[1].at
    assert index.files["__7_0.distcp"] == (len(data), None)


def test_a_view_takes_no_more_than_its_own_bytes(tmp_path):
    large = torch.arange(100_000.0)
    index = write_chunks({"a": large[10:20]}, tmp_path, 0)
    assert (tmp_path / "__0_0.distcp").stat().st_size < 4000
    found = torch.empty(10)
    read_part(PATH, tmp_path, "a", index.tensors["a"], found)
    assert torch.equal(found, large[10:20])


def test_who_has_nothing_to_write_writes_no_file(tmp_path):
    index = write_chunks({"a": torch.empty(0, 3)}, tmp_path, 1)
    assert index.tensors["a"].shape == [0, 3]
    assert not index.files
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_not_replaced(tmp_path):
    write_chunks({"a": torch.ones(2)}, tmp_path, 0)
    with pytest.raises(FileExistsError):
        write_chunks({"a": torch.zeros(2)}, tmp_path, 0)


def test_boxes_of_several_chunks_are_put_together(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    boxes = [([0, 0], [3, 2]), ([0, 2], [3, 4]), ([3, 0], [1, 6])]
    stored = None
    for rank, ((row, column), (height, width)) in enumerate(boxes):
        own = whole[row : row + height, column : column + width]
        written = write_chunks({"a": own}, tmp_path, rank).tensors["a"]
        (chunk,) = written.chunks
        chunk = chunk._replace(offsets=[row, column])
        stored = written._replace(shape=[4, 6], chunks=[*(stored.chunks if stored else ()), chunk])
    found = torch.empty(4, 6)
    read_part(PATH, tmp_path, "a", stored, found)
    assert torch.equal(found, whole)


@pytest.mark.parametrize(
    "change", [{"crc32": 1}, {"bytes": 10_000}, {"file": "none"}, {"sizes": [2, 1]}, {"at": 1}]
)
def test_what_is_not_as_described_is_refused(tmp_path, change):
    stored = write_chunks({"a": torch.ones(2, 3)}, tmp_path, 0).tensors["a"]
    stored.chunks[0] = stored.chunks[0]._replace(**change)
    with pytest.raises(DamagedCheckpointError, match=r"the tensors of 'm\.pth' are damaged"):
        read_part(PATH, tmp_path, "a", stored, torch.empty(2, 3))


@pytest.mark.parametrize(
    ("pickled", "compression", "message"),
    [
        (b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".", zipfile.ZIP_STORED, "levels deep"),
        (b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00exittR.", zipfile.ZIP_STORED, "could run code"),
        (b"\x80\x02N.", zipfile.ZIP_DEFLATED, "compressed"),
    ],
)
def test_a_chunk_is_scanned_before_torch_reads_it(tmp_path, pickled, compression, message):
    """Its checksum matches, as an attacker writes the index as well."""
    stored = write_chunks({"a": torch.ones(2, 3)}, tmp_path, 0).tensors["a"]
    path = tmp_path / stored.chunks[0].file
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    data = path.read_bytes()
    stored.chunks[0] = stored.chunks[0]._replace(at=0, bytes=len(data), crc32=zlib.crc32(data))
    with pytest.raises(CheckpointError, match=message):
        read_part(PATH, tmp_path, "a", stored, torch.empty(2, 3))
