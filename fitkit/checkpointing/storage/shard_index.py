"""The index of a shard folder: where each part of each tensor is, checked when it is read."""

from __future__ import annotations

import json
import zlib
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from fitkit.checkpointing.format.tensor_stubs import dtype_from_name
from fitkit.core.errors import DamagedCheckpointError

INDEX_NAME = "index.json"

# The fields of these classes are the keys of the index, so they are part of the file format.


class Chunk(NamedTuple):
    """A part of a tensor, and the ``bytes`` of ``file`` that hold it, from offset ``at``."""

    offsets: list[int]
    sizes: list[int]
    file: str
    at: int
    bytes: int
    crc32: int


class ShardedTensor(NamedTuple):
    """A tensor whose chunks each hold some of its rows."""

    shape: list[int]
    dtype: str
    chunks: list[Chunk]


class ShardFile(NamedTuple):
    """Size and checksum of a file in the folder."""

    bytes: int
    crc32: int


class ShardIndex(NamedTuple):
    """The tensors and the files of a shard folder."""

    tensors: dict[str, ShardedTensor]
    files: dict[str, ShardFile]


def read_index(path: Path, folder: Path, reference: Any) -> ShardIndex:
    """The index of the shard ``folder`` of the checkpoint ``path``; raises if it is damaged."""
    try:
        text = (folder / INDEX_NAME).read_bytes()
        if [len(text), zlib.crc32(text)] != [reference.get("bytes"), reference.get("crc32")]:
            raise ValueError(f"the checksum of {INDEX_NAME!r} does not match")
        content = json.loads(text)
        files = {name: _check_file(name, ShardFile(*it)) for name, it in content["files"].items()}
        tensors = {}
        for key, value in content["tensors"].items():
            chunks = [Chunk(**chunk) for chunk in value["chunks"]]
            tensors[key] = _check_tensor(ShardedTensor(value["shape"], value["dtype"], chunks))
            if any(chunk.at + chunk.bytes > files[chunk.file].bytes for chunk in chunks):
                raise ValueError("a shard is outside its file")
        for name in {chunk.file for tensor in tensors.values() for chunk in tensor.chunks}:
            if (folder / name).stat().st_size != files[name].bytes:
                raise ValueError(f"the size of {name!r} does not match")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged_shards(path, error) from error
    return ShardIndex(tensors, files)


def _check_file(name: str, file: ShardFile) -> ShardFile:
    if Path(name).name != name or name in ("", "..") or not _are_counts(list(file)):
        raise ValueError("a file is outside its folder")
    return file


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
    # Rows in no chunk would keep whatever was in memory, so the chunks must follow one another.
    shape, row = tensor.shape or [1], 0  # a scalar is one row
    for chunk in sorted(chunk for chunk in tensor.chunks if prod(chunk.sizes)):
        sizes = chunk.sizes or [1]
        if [*(chunk.offsets or [0]), *sizes[1:]] != [row, *[0] * (len(shape) - 1), *shape[1:]]:
            raise ValueError("the shards of a tensor overlap or do not cover it")
        row += sizes[0]
    if prod(shape) and row != shape[0]:
        raise ValueError("the shards of a tensor do not cover it")
    return tensor


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def damaged_shards(path: Path, cause: BaseException | str) -> DamagedCheckpointError:
    """The error for a shard folder that cannot be read."""
    return DamagedCheckpointError(
        f"the tensors of {str(path)!r} are damaged: {cause}. Use an earlier checkpoint."
    )
