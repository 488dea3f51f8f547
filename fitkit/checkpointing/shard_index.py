"""Index: where each piece of a sharded checkpoint lies; read as plain data, and checked."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from fitkit.checkpointing.skeleton import dtype_of
from fitkit.core.errors import DamagedCheckpointError

NAME = "index.json"


class Chunk(NamedTuple):
    """A box of a tensor, and where it lies: in ``bytes`` from ``at`` on of ``file``."""

    offsets: list[int]
    sizes: list[int]
    file: str
    at: int
    bytes: int
    crc32: int


class Piecewise(NamedTuple):
    """A tensor that lies in chunks, each some of its rows."""

    shape: list[int]
    dtype: str
    chunks: list[Chunk]


class File(NamedTuple):
    """A file as it was written."""

    bytes: int
    crc32: int


class Index(NamedTuple):
    """What lies in the shards of one checkpoint: the tensors, and the files that they are in."""

    tensors: dict[str, Piecewise]
    files: dict[str, File]


def read_index(path: Path, folder: Path, reference: Any) -> Index:
    """What lies where in the ``folder`` of the checkpoint ``path``; verified.

    Raises:
        DamagedCheckpointError: it cannot be used.
    """
    try:
        text = (folder / NAME).read_bytes()
        if [len(text), zlib.crc32(text)] != [reference.get("bytes"), reference.get("crc32")]:
            raise ValueError(f"the checksum of {NAME!r} does not match")
        told = json.loads(text)
        others = {name: File(*about) for name, about in told["files"].items()}
        tensors = {}
        for key, one in told["tensors"].items():
            chunks = [Chunk(**chunk) for chunk in one["chunks"]]
            tensors[key] = _checked(Piecewise(one["shape"], one["dtype"], chunks))
            _require_inside(chunks, others)
        for name in {chunk.file for tensor in tensors.values() for chunk in tensor.chunks}:
            if (folder / name).stat().st_size != others[name].bytes:
                raise ValueError(f"the size of {name!r} does not match")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from error
    return Index(tensors, others)


def _require_inside(chunks: list[Chunk], others: Mapping[str, File]) -> None:
    for name, about in others.items():
        if Path(name).name != name or not _are_counts(list(about)):
            raise ValueError("a file is outside its folder")
    if any(chunk.at + chunk.bytes > others[chunk.file].bytes for chunk in chunks):
        raise ValueError("a piece is outside its file")


def _checked(tensor: Piecewise) -> Piecewise:
    dtype = dtype_of(tensor.dtype)
    if dtype is None or not _are_counts(tensor.shape):
        raise ValueError("a tensor has no valid shape or type")
    for chunk in tensor.chunks:
        if not _are_counts([*chunk.offsets, *chunk.sizes, chunk.at, chunk.bytes]):
            raise ValueError("a piece has no valid place")
        if len(chunk.offsets) != len(tensor.shape) or len(chunk.sizes) != len(tensor.shape):
            raise ValueError("a piece has other dimensions than its tensor")
        if chunk.bytes < prod(chunk.sizes) * dtype.itemsize:
            raise ValueError("a piece claims more memory than it has bytes")
    # what lies in no piece would stay as it was in memory
    row = 0
    for chunk in sorted(filter(lambda one: prod(one.sizes), tensor.chunks)):
        if [*chunk.offsets, *chunk.sizes[1:]] != [
            row,
            *[0] * (len(tensor.shape) - 1),
            *tensor.shape[1:],
        ]:
            raise ValueError("the pieces of a tensor overlap, or are not all of it")
        row += chunk.sizes[0]
    if prod(tensor.shape) and row != tensor.shape[0]:
        raise ValueError("the pieces of a tensor are not all of it")
    return tensor


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def damaged(path: Path, error: BaseException) -> DamagedCheckpointError:
    """What to tell of a folder that cannot be read."""
    return DamagedCheckpointError(
        f"the tensors of {str(path)!r} are damaged: {error}. Use an earlier checkpoint."
    )
