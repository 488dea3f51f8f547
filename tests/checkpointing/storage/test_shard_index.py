"""The index of a shard folder; whole checkpoints are damaged in test_shard_folder.py."""

from __future__ import annotations

import copy
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit import DamagedCheckpointError
from fitkit.checkpointing.storage.shard_index import INDEX_NAME, read_index

FIRST = {"offsets": [0, 0], "sizes": [1, 4], "file": "0.bin", "at": 0, "bytes": 16, "crc32": 1}
SECOND = {"offsets": [1, 0], "sizes": [2, 4], "file": "1.bin", "at": 8, "bytes": 32, "crc32": 2}
INDEX = {
    "files": {"0.bin": [16, 3], "1.bin": [40, 4]},
    "tensors": {"w": {"shape": [3, 4], "dtype": "float32", "chunks": [SECOND, FIRST]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "0.bin").write_bytes(bytes(16))
    (folder / "1.bin").write_bytes(bytes(40))
    return folder


def read(folder, index):
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    (folder / INDEX_NAME).write_bytes(text)
    return read_index(
        Path("m.pth"), folder, {"bytes": len(text), "crc32": zlib.crc32(text), "more": 1}
    )


@pytest.mark.parametrize("part", ["bytes", "crc32"])
def test_another_index_is_refused(folder, part):
    text = json.dumps(INDEX).encode()
    (folder / INDEX_NAME).write_bytes(text)
    reference = {"bytes": len(text), "crc32": zlib.crc32(text)}
    read_index(Path("m.pth"), folder, reference)
    reference[part] += 1
    with pytest.raises(DamagedCheckpointError, match=r"'m\.pth' are damaged: .*checksum"):
        read_index(Path("m.pth"), folder, reference)


@pytest.mark.parametrize(
    "index", [b"", b"{", b"\xff", b"[]", b"3", b'{"files": {}}', b"null", b"[" * 200_000]
)
def test_a_text_that_is_no_index(folder, index):
    with pytest.raises(DamagedCheckpointError, match="Use an earlier checkpoint"):
        read(folder, index)


SENTENCES = {
    "outside its file": lambda index: index["files"].update({"1.bin": [39, 4]}),
    r"size of '0.bin' does not match": lambda index: index["files"].update({"0.bin": [17, 3]}),
    "0.bin": lambda index: index["files"].pop("0.bin"),
    "outside its folder": lambda index: index["files"].update({"../x.bin": [1, 1]}),
    "no valid shape or type": lambda index: index["tensors"]["w"].update(dtype="float33"),
    "no valid position": lambda index: index["tensors"]["w"]["chunks"][0].update(at=-1),
    "other dimensions": lambda index: index["tensors"]["w"]["chunks"][0].update(offsets=[1]),
    "more memory": lambda index: index["tensors"]["w"].update(dtype="float64"),
    "overlap": lambda index: index["tensors"]["w"]["chunks"][0].update(offsets=[0, 0]),
    "do not cover it": lambda index: index["tensors"]["w"]["chunks"].pop(0),
    "unexpected keyword": lambda index: index["tensors"]["w"]["chunks"][0].update(more=1),
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_an_index_that_cannot_be_used(folder, sentence):
    index = copy.deepcopy(INDEX)
    SENTENCES[sentence](index)
    with pytest.raises(DamagedCheckpointError, match=sentence):
        read(folder, index)


@given(st.permutations(range(5)), st.integers(0, 4), st.integers(1, 3))
def test_rows_in_any_order_but_all_of_them(folder, order, left_out, columns):
    size = 4 * columns
    common = {"sizes": [1, columns], "file": "1.bin", "at": 0, "bytes": size, "crc32": 0}
    chunks = [{"offsets": [row, 0], **common} for row in order]
    tensor = {"shape": [5, columns], "dtype": "float32", "chunks": chunks}
    index = {"files": {"1.bin": [40, 4]}, "tensors": {"w": tensor}}
    assert len(read(folder, index).tensors["w"].chunks) == 5
    chunks.pop(left_out)
    with pytest.raises(DamagedCheckpointError, match="cover it"):
        read(folder, index)


def test_tensors_without_elements_need_no_chunk(folder):
    tensor = {"shape": [0, 2**60], "dtype": "float32", "chunks": []}
    assert read(folder, {"files": {}, "tensors": {"w": tensor}}).tensors["w"].shape == [0, 2**60]


@pytest.mark.parametrize("name", ["", "..", "../0.bin", "a/0.bin"])
def test_a_file_name_that_leaves_the_folder(folder, name):
    index = copy.deepcopy(INDEX)
    index["files"][name] = [1, 1]
    with pytest.raises(DamagedCheckpointError, match="outside its folder"):
        read(folder, index)


def test_a_scalar_is_covered_by_one_chunk(folder):
    chunk = {**FIRST, "offsets": [], "sizes": [], "bytes": 4}
    index = copy.deepcopy(INDEX)
    index["tensors"]["w"] = {"shape": [], "dtype": "float32", "chunks": [chunk]}
    assert read(folder, index).tensors["w"].shape == []
    index["tensors"]["w"]["chunks"] = []
    with pytest.raises(DamagedCheckpointError, match="do not cover it"):
        read(folder, index)
