"""The indexes of a shard folder: where each part of each tensor is, checked when they are read.

Each rank that writes shards writes an index of its own beside them, and the checkpoint file has the
size and checksum of each index. So no rank gathers or reads what grows with ranks times tensors: a
reader takes the indexes in which its parts should be, and the others only if parts are missing.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from fitkit.checkpointing.format.tensor_stubs import dtype_from_name
from fitkit.core.errors import DamagedCheckpointError

# What a checkpoint says: size and checksum of each index, and of the files that are in none.
INDEXES_KEY, FILES_KEY = "indexes", "files"
_SINGLE_NAME = "index.json"  # older folders have this one for all ranks

# The fields of these classes are the keys of an index, so they are part of the file format.


class Chunk(NamedTuple):
    """A part of a tensor, and the ``bytes`` of ``file`` that hold it, from offset ``at``."""

    offsets: list[int]
    sizes: list[int]
    file: str
    at: int
    bytes: int
    crc32: int


class ShardedTensor(NamedTuple):
    """A tensor and its chunks, which do not overlap."""

    shape: list[int]
    dtype: str
    chunks: list[Chunk]


class ShardFile(NamedTuple):
    """Size and checksum of a file in the folder; ``None``: each of its chunks has a checksum."""

    bytes: int
    crc32: int | None


class ShardIndex(NamedTuple):
    """Tensors and files of a shard folder: those of one rank, or of several."""

    tensors: dict[str, ShardedTensor]
    files: dict[str, ShardFile]


class Part(NamedTuple):
    """A box of a tensor of this ``shape``."""

    shape: list[int]
    offsets: list[int]
    sizes: list[int]


def index_name(rank: int) -> str:
    """The name of the index that ``rank`` writes."""
    return f"index.{rank}.json"


def write_index(path: Path, index: ShardIndex) -> list[int]:
    """Write a new, durable index to ``path``; return its size and checksum."""
    tensors = {
        key: {**tensor._asdict(), "chunks": [chunk._asdict() for chunk in tensor.chunks]}
        for key, tensor in index.tensors.items()
    }
    text = json.dumps({"tensors": tensors, "files": index.files}).encode()
    with path.open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return [len(text), zlib.crc32(text)]


def read_index(
    path: Path, folder: Path, reference: Any, parts: Mapping[str, Part] | None = None
) -> ShardIndex:
    """Read the indexes of the shard ``folder`` of the checkpoint ``path``, as one.

    Args:
        path: the checkpoint.
        folder: its shard folder.
        reference: what the checkpoint says about its folder.
        parts: the part that is needed of each tensor; others may be left out, with their tensors.
            ``None``: all indexes are read, and must cover every tensor. A tensor of another shape
            is left to the caller.

    Raises:
        DamagedCheckpointError: an index is damaged, or a part is not covered.
    """
    try:
        unread = _list_indexes(reference)
        merged = ShardIndex({}, _files_of(reference.get(FILES_KEY, {})))
        names = list(unread)
        for number in () if parts is None else _likely(len(names), parts.values()):
            _merge(merged, _read_one(folder, names[number], unread.pop(names[number])))
        if parts is None or not all(_has_part(merged, *item) for item in parts.items()):
            for name, size_and_checksum in unread.items():
                _merge(merged, _read_one(folder, name, size_and_checksum))
        for key, tensor in merged.tensors.items():
            whole = Part(tensor.shape, [0] * len(tensor.shape), tensor.shape)
            part = whole if parts is None else parts.get(key)
            if part is not None and part.shape == tensor.shape and not _covers(tensor, part):
                raise ValueError("the shards of a tensor do not cover it")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged_shards(path, error) from error
    return merged


def _list_indexes(reference: Any) -> dict[str, list[int]]:
    """The name of each index, with its size and checksum."""
    if INDEXES_KEY not in reference:
        return {_SINGLE_NAME: [reference.get("bytes"), reference.get("crc32")]}
    indexes: dict[str, list[int]] = dict(reference[INDEXES_KEY])
    if not all(map(_is_file_name, indexes)):
        raise ValueError("an index is outside its folder")
    return indexes


def _read_one(folder: Path, name: str, size_and_checksum: list[int]) -> ShardIndex:
    if not (folder / name).is_file():  # opening a pipe could wait forever
        raise ValueError(f"{name!r} is missing or no ordinary file")
    text = (folder / name).read_bytes()
    if [len(text), zlib.crc32(text)] != size_and_checksum:
        raise ValueError(f"the checksum of {name!r} does not match")
    content = json.loads(text)
    files, tensors = _files_of(content["files"]), {}
    for key, value in content["tensors"].items():
        chunks = [Chunk(**chunk) for chunk in value["chunks"]]
        tensors[key] = _check_tensor(ShardedTensor(value["shape"], value["dtype"], chunks))
        if any(chunk.at + chunk.bytes > files[chunk.file].bytes for chunk in chunks):
            raise ValueError("a shard is outside its file")
    for name in {chunk.file for tensor in tensors.values() for chunk in tensor.chunks}:
        if (folder / name).stat().st_size != files[name].bytes:
            raise ValueError(f"the size of {name!r} does not match")
    return ShardIndex(tensors, files)


def _merge(merged: ShardIndex, index: ShardIndex) -> None:
    if not merged.files.keys().isdisjoint(index.files):
        raise ValueError("two indexes describe one file")
    merged.files.update(index.files)
    for key, tensor in index.tensors.items():
        known = merged.tensors.setdefault(key, ShardedTensor(tensor.shape, tensor.dtype, []))
        if (known.shape, known.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError("the shards of a tensor have several shapes or types")
        known.chunks.extend(tensor.chunks)


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def _files_of(described: Any) -> dict[str, ShardFile]:
    files = {name: ShardFile(*description) for name, description in described.items()}
    for name, file in files.items():
        if not _is_file_name(name) or not _are_counts([file.bytes, file.crc32 or 0]):
            raise ValueError("a file is outside its folder")
    return files


def _check_tensor(tensor: ShardedTensor) -> ShardedTensor:
    dtype, dimensions = dtype_from_name(tensor.dtype), len(tensor.shape)
    if dtype is None or not _are_counts(tensor.shape):
        raise ValueError("a tensor has no valid shape or type")
    for chunk in tensor.chunks:
        if not _are_counts([*chunk.offsets, *chunk.sizes, chunk.at, chunk.bytes]):
            raise ValueError("a shard has no valid position")
        if len(chunk.offsets) != dimensions or len(chunk.sizes) != dimensions:
            raise ValueError("a shard has other dimensions than its tensor")
        if chunk.bytes < prod(chunk.sizes) * dtype.itemsize:
            raise ValueError("a shard claims more memory than it has bytes")
        ends = (begin + size for begin, size in zip(chunk.offsets, chunk.sizes, strict=True))
        if any(end > size for end, size in zip(ends, tensor.shape, strict=True)):
            raise ValueError("a shard is outside its tensor, so its shards do not cover it")
    return tensor


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


# ---- boxes --------------------------------------------------------------------------------------

Boxed = Chunk | Part


def overlap(one: Boxed, other: Boxed) -> tuple[list[int], list[int]] | None:
    """Offsets and sizes of the elements that are in both boxes; ``None`` if there are none."""
    offsets, sizes = [], []
    for first, length, second, width in zip(
        one.offsets, one.sizes, other.offsets, other.sizes, strict=True
    ):
        begin, end = max(first, second), min(first + length, second + width)
        if begin >= end:
            return None
        offsets.append(begin)
        sizes.append(end - begin)
    return offsets, sizes


def _has_part(index: ShardIndex, key: str, part: Part) -> bool:
    tensor = index.tensors.get(key)
    return tensor is not None and tensor.shape == part.shape and _covers(tensor, part)


def _covers(tensor: ShardedTensor, part: Part) -> bool:
    """Whether each element of ``part`` is in a chunk; raises if one is in two.

    What is in no chunk would keep whatever was in memory.
    """
    left, above = prod(part.sizes), list[Chunk]()
    for chunk in sorted(chunk for chunk in tensor.chunks if prod(chunk.sizes)):
        # of the chunks before, only those that reach these rows can overlap
        above = [it for it in above if _end_of_rows(it) > _first_row(chunk)]
        if any(overlap(it, chunk) for it in above):
            raise ValueError("the shards of a tensor overlap or do not cover it")
        above.append(chunk)
        common = overlap(chunk, part)
        left -= prod(common[1]) if common is not None else 0
    return left == 0


def _first_row(box: Boxed) -> int:
    return box.offsets[0] if box.offsets else 0  # a scalar is one row


def _end_of_rows(box: Boxed) -> int:
    return _first_row(box) + (box.sizes[0] if box.sizes else 1)


def _likely(count: int, parts: Iterable[Part]) -> Sequence[int]:
    """Which of ``count`` indexes have these parts if the rows were divided as FSDP does."""
    found = set[int]()
    for part in parts:
        if prod(part.sizes):
            rows = -(-(part.shape[0] if part.shape else 1) // max(count, 1))
            found.update(range(_first_row(part) // rows, -(-_end_of_rows(part) // rows)))
    return sorted(number for number in found if number < count) or range(min(count, 1))


def damaged_shards(path: Path, cause: BaseException | str) -> DamagedCheckpointError:
    """The error for a shard folder that cannot be read."""
    return DamagedCheckpointError(
        f"the tensors of {str(path)!r} are damaged: {cause}. Use an earlier checkpoint."
    )
