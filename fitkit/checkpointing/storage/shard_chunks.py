"""The chunks of a shard file: this rank's part of each tensor, written with ``torch.save``."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fitkit.checkpointing.storage import safe_load
from fitkit.checkpointing.storage.shard_index import (
    Chunk,
    Part,
    ShardedTensor,
    ShardFile,
    ShardIndex,
    damaged_shards,
    overlap,
)
from fitkit.core.formatting import dtype_name
from fitkit.distributed.dtensor import is_first_replica, local_tensor, own_box

# An uninitialized tensor of a shape and type on a device: a whole one, or the shard of this rank.
Empty = Callable[[tuple[int, ...], torch.dtype, str], Tensor]


def write_chunks(tensors: Mapping[str, Tensor], folder: Path, rank: int) -> ShardIndex:
    """Write this rank's parts of ``tensors``, as a new file that is then durable.

    No rank has to know what others write: a part that several ranks have is written by the first.

    Returns:
        the index of the file; it names every tensor, also those of which this rank writes nothing.

    Raises:
        OSError: the file could not be written.
    """
    name, index = f"__{rank}_0.distcp", ShardIndex({}, {})
    own = {key for key, it in tensors.items() if is_first_replica(it) and local_tensor(it).numel()}
    with (folder / name).open("xb") if own else nullcontext() as file:
        for key, tensor in tensors.items():
            chunks = []
            if file is not None and key in own:
                at, checksum = file.tell(), _save(local_tensor(tensor), file)
                chunks.append(Chunk(*own_box(tensor), name, at, file.tell() - at, checksum))
            dtype = dtype_name(tensor.dtype)
            index.tensors[key] = ShardedTensor(list(tensor.shape), dtype, chunks)
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            index.files[name] = ShardFile(file.tell(), None)
    return index


def _save(tensor: Tensor, file: BinaryIO) -> int:
    """Append a tensor to ``file``; return the checksum of what was written."""
    tensor = tensor.detach().cpu()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:  # a view: all of the rest would go along
        tensor = tensor.clone()
    stream: Any = _ChecksumStream(file)
    try:
        torch.save(tensor, stream)
    except RuntimeError as error:  # torch hides the error of a full disk in it
        raise error.__context__ if isinstance(error.__context__, OSError) else error from error
    return int(stream.crc32)


class _ChecksumStream(io.RawIOBase):
    """Passes on what is written, and adds up its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc32 = file, 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        return self._file.write(data)


def read_part(path: Path, folder: Path, key: str, stored: ShardedTensor, into: Tensor) -> None:
    """Fill this rank's part of ``into``, the tensor ``key`` of the checkpoint ``path``.

    Only chunks that it needs are read. Nothing in them is executed.

    Raises:
        DamagedCheckpointError: a chunk is not what the index describes.
        UnsafeCheckpointError: a chunk holds something other than a tensor.
    """
    local, part = local_tensor(into), Part(stored.shape, *own_box(into))
    for chunk in stored.chunks:
        common = overlap(chunk, part)
        if common is not None and local.numel():
            values = _read_chunk(path, folder, key, stored.dtype, chunk)
            offsets, sizes = common
            local[_slices(offsets, sizes, part)] = values[_slices(offsets, sizes, chunk)]


def _slices(offsets: list[int], sizes: list[int], box: Part | Chunk) -> tuple[slice, ...]:
    """Where the elements at these offsets of a tensor are in its ``box``."""
    begins = [offset - first for offset, first in zip(offsets, box.offsets, strict=True)]
    return tuple(slice(it, it + size) for it, size in zip(begins, sizes, strict=True))


def _read_chunk(path: Path, folder: Path, key: str, dtype: str, chunk: Chunk) -> Tensor:
    try:
        with (folder / chunk.file).open("rb") as file:
            file.seek(chunk.at)
            data = file.read(chunk.bytes)
    except OSError as error:
        raise damaged_shards(path, error) from error
    if (len(data), zlib.crc32(data)) != (chunk.bytes, chunk.crc32):
        raise damaged_shards(path, f"the checksum of {key!r} in {chunk.file!r} does not match")
    value = safe_load.read_bytes(data, folder / chunk.file)
    is_tensor = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    if not is_tensor or (dtype_name(value.dtype), list(value.shape)) != (dtype, chunk.sizes):
        raise damaged_shards(path, f"{key!r} in {chunk.file!r} is not what its index describes")
    return value  # type: ignore[no-any-return]
