"""The index of a shard folder; whole checkpoints are damaged in test_shard_folder.py."""

from __future__ import annotations

import copy
import itertools
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit import DamagedCheckpointError
from fitkit.checkpointing.storage.shard_index import (
    Chunk,
    Part,
    ShardedTensor,
    ShardFile,
    ShardIndex,
    index_name,
    overlap,
    read_index,
    write_index,
)

INDEX_NAME = "index.json"  # of folders that have one for all ranks

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


# ---- boxes --------------------------------------------------------------------------------------


@st.composite
def grids(draw):
    """A tensor of rows and columns, divided along both into boxes in any order."""
    shape = [draw(st.integers(1, 6)), draw(st.integers(1, 6))]
    cuts = [sorted({0, size, *draw(st.sets(st.integers(0, size), max_size=3))}) for size in shape]
    rows, columns = (list(itertools.pairwise(edges)) for edges in cuts)
    boxes = [([a, c], [b - a, d - c]) for a, b in rows for c, d in columns]
    return shape, draw(st.permutations(boxes))


def read_boxes(folder, shape, boxes, parts=None):
    index = {"files": {"1.bin": [40, None]}, "tensors": {"w": {"shape": shape, "dtype": "uint8"}}}
    index["tensors"]["w"]["chunks"] = [
        {**FIRST, "file": "1.bin", "offsets": offsets, "sizes": sizes, "bytes": 36}
        for offsets, sizes in boxes
    ]
    text = json.dumps(index).encode()
    (folder / INDEX_NAME).write_bytes(text)
    reference = {"bytes": len(text), "crc32": zlib.crc32(text)}
    return read_index(Path("m.pth"), folder, reference, parts)


@given(case=grids())
def test_boxes_that_are_all_of_a_tensor_are_accepted(folder, case):
    shape, boxes = case
    assert len(read_boxes(folder, shape, boxes).tensors["w"].chunks) == len(boxes)


@given(case=grids(), data=st.data())
def test_boxes_that_are_not_are_refused(folder, case, data):
    shape, boxes = case
    which = data.draw(st.integers(0, len(boxes) - 1))
    how = data.draw(st.sampled_from(["left out", "twice", "moved down", "moved right"]))
    (row, column), sizes = boxes[which]
    others = [box for number, box in enumerate(boxes) if number != which]
    changed = {
        "left out": [],
        "twice": [boxes[which]] * 2,
        "moved down": [([row + 1, column], sizes)],
        "moved right": [([row, column + 1], sizes)],
    }[how]
    with pytest.raises(DamagedCheckpointError, match=r"overlap|cover it"):
        read_boxes(folder, shape, [*others, *changed])


@given(case=grids(), data=st.data())
def test_a_part_needs_the_boxes_that_it_lies_in(folder, case, data):
    shape, boxes = case
    begins = [data.draw(st.integers(0, size - 1)) for size in shape]
    lengths = [
        data.draw(st.integers(1, size - first)) for size, first in zip(shape, begins, strict=True)
    ]
    part = Part(shape, begins, lengths)
    needed = [box for box in boxes if overlap(part, Part(shape, *box)) is not None]
    read_boxes(folder, shape, needed, {"w": part})
    with pytest.raises(DamagedCheckpointError, match="cover it"):
        read_boxes(folder, shape, needed[1:], {"w": part})


def test_what_two_boxes_share():
    one, other = Part([5, 5], [1, 0], [3, 2]), Part([5, 5], [2, 1], [3, 4])
    assert overlap(one, other) == ([2, 1], [2, 1])
    assert overlap(one, Part([5, 5], [4, 0], [1, 5])) is None
    assert overlap(Part([], [], []), Part([], [], [])) == ([], [])


# ---- one index for each rank --------------------------------------------------------------------

RANKS = 4


def of_rank(rank):
    """Two tensors of 9 and 4 rows in equal shares, as FSDP divides them."""
    tensors = {}
    for key, rows in (("w", 9), ("b", 4)):
        share = -(-rows // RANKS)
        own = max(0, min(share, rows - rank * share))
        chunk = Chunk([rank * share, 0], [own, 2], f"{rank}.bin", 0, 24, 1)
        tensors[key] = ShardedTensor([rows, 2], "float32", [chunk] if own else [])
    return ShardIndex(tensors, {f"{rank}.bin": ShardFile(24, None)})


@pytest.fixture
def shared(tmp_path):
    """A folder that four ranks have written, and what the checkpoint says about it."""
    entries = {}
    for rank in range(RANKS):
        (tmp_path / f"{rank}.bin").write_bytes(bytes(24))
        entries[index_name(rank)] = write_index(tmp_path / index_name(rank), of_rank(rank))
    return tmp_path, {"indexes": entries, "files": {"more": [3, 4]}}


def rows(first, end, count):
    return Part([count, 2], [first, 0], [end - first, 2])


def test_all_indexes_are_read_as_one(shared):
    found = read_index(Path("m.pth"), *shared)
    assert [chunk.offsets[0] for chunk in found.tensors["w"].chunks] == [0, 3, 6]
    assert [chunk.file for chunk in found.tensors["b"].chunks] == [f"{i}.bin" for i in range(4)]
    assert set(found.files) == {"more", *(f"{i}.bin" for i in range(4))}
    assert found.files["more"] == ShardFile(3, 4)


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_rank_of_as_many_reads_its_own_alone(shared, rank):
    folder, reference = shared
    for other in set(range(RANKS)) - {rank}:
        (folder / index_name(other)).unlink()
        (folder / f"{other}.bin").unlink()
    first = min(3 * rank, 9)
    parts = {"w": rows(first, min(first + 3, 9), 9), "b": rows(rank, rank + 1, 4)}
    found = read_index(Path("m.pth"), folder, reference, parts)
    assert {chunk.file for it in found.tensors.values() for chunk in it.chunks} == {f"{rank}.bin"}


def test_a_rank_of_two_reads_those_of_its_rows(shared):
    folder, reference = shared
    (folder / index_name(3)).unlink()
    parts = {"w": rows(0, 5, 9), "b": rows(0, 2, 4)}
    assert len(read_index(Path("m.pth"), folder, reference, parts).tensors["b"].chunks) == 2
    (folder / index_name(1)).unlink()
    with pytest.raises(DamagedCheckpointError, match=r"index\.1\.json"):
        read_index(Path("m.pth"), folder, reference, parts)


def test_rows_that_are_elsewhere_are_found(shared):
    """The ranks were in another order when they wrote."""
    folder, reference = shared
    reference["indexes"] = dict(reversed(reference["indexes"].items()))
    parts = {"w": rows(0, 3, 9), "b": rows(0, 1, 4)}
    found = read_index(Path("m.pth"), folder, reference, parts)
    assert "0.bin" in {chunk.file for chunk in found.tensors["w"].chunks}


@pytest.mark.parametrize("name", [index_name(1), "1.bin"])
def test_a_missing_file_of_a_rank_is_found(shared, name):
    folder, reference = shared
    (folder / name).unlink()
    with pytest.raises(DamagedCheckpointError, match=name.replace(".", r"\.")):
        read_index(Path("m.pth"), folder, reference)


def rewritten(shared, rank, change):
    folder, reference = shared
    index = of_rank(rank)
    change(index)
    (folder / index_name(rank)).unlink()
    reference["indexes"][index_name(rank)] = write_index(folder / index_name(rank), index)


DISAGREEMENTS = {
    "several shapes": lambda index: index.tensors.update(b=ShardedTensor([5, 2], "float32", [])),
    "or types": lambda index: index.tensors.update(b=ShardedTensor([4, 2], "float16", [])),
    "two indexes describe one file": lambda index: index.files.update({"0.bin": ShardFile(24, 0)}),
    "overlap": lambda index: index.tensors["b"].chunks[0].offsets.__setitem__(0, 0),
    "cover it": lambda index: index.tensors["b"].chunks.clear(),
}


@pytest.mark.parametrize("sentence", DISAGREEMENTS)
def test_indexes_that_do_not_fit_together(shared, sentence):
    rewritten(shared, 1, DISAGREEMENTS[sentence])
    with pytest.raises(DamagedCheckpointError, match=sentence):
        read_index(Path("m.pth"), *shared)


def test_an_entry_does_not_grow_with_tensors(tmp_path):
    few, many = of_rank(0), of_rank(0)
    many.tensors.update({f"w{i}": many.tensors["w"] for i in range(1000)})
    entries = [write_index(tmp_path / f"{i}.json", one) for i, one in enumerate((few, many))]
    assert [len(entry) for entry in entries] == [2, 2]
    assert entries[1][0] > 100 * entries[0][0]
