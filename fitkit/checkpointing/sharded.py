"""A sharded checkpoint written and read, its pieces through torch.distributed.checkpoint.

Importing this takes a second, so only what meets such a checkpoint does.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from fitkit.checkpointing import files, shards, skeleton, temporary
from fitkit.checkpointing.shard_index import Chunk, Piecewise, damaged, read_index
from fitkit.core.errors import CheckpointError
from fitkit.runtime.pieces import is_piece
from fitkit.runtime.world import World

# ---- writing ------------------------------------------------------------------------------------


def write(
    content: Any,
    path: Path,
    also: Iterable[Path] = (),
    *,
    world: World,
    takes: Callable[[Any], bool] = is_piece,
) -> None:
    """Write ``content``, which each process has its pieces of; called on the main one.

    The others call ``take_part`` meanwhile. Pieces go to a folder that nobody has seen before; when
    all of them are durable, the checkpoint itself is written as any other.

    Args:
        content: tensors and plain types.
        path: the checkpoint.
        also: further names of it.
        world: the processes.
        takes: which tensors are pieces.

    Raises:
        SaveError: it could not be written, here or by another process; an earlier checkpoint of
            that name is as it was.
    """
    rest, pieces = skeleton.take_out(content, takes)
    also, is_written = list(also), False
    try:
        with files.told(path), temporary.new_folder(path.parent) as folder:
            world.broadcast(str(folder.resolve()))
            tensors = _write_pieces(pieces, folder, world)
            sealed = shards.seal(folder, tensors)
            home = folder.with_name(f"{folder.name.split('.')[1]}{shards.SUFFIX}")
            os.rename(folder, home)
            files.flush_folder(path.parent)
            reference = {"folder": home.name, **sealed}
            for parent in {name.parent for name in also}:
                shards.share(home, parent)
            files.write({shards.REFERENCE: reference, shards.CONTENT: rest}, path, also)
        is_written = True
    finally:
        world.broadcast(is_written)
        for parent in {path.parent, *(name.parent for name in also)}:
            shards.sweep(parent)


def take_part(content: Any, world: World) -> bool:
    """Write this process's pieces of ``content``; called on all but the main process.

    Returns:
        whether the checkpoint was written; if not, the main process tells why.
    """
    folder = world.broadcast(None)
    if isinstance(folder, str):
        with suppress(OSError):  # the main process has heard of it
            _write_pieces(skeleton.take_out(content, is_piece)[1], Path(folder), world)
        return bool(world.broadcast(None))
    return False


def _write_pieces(pieces: dict[str, Tensor], folder: Path, world: World) -> dict[str, Piecewise]:
    """Write the pieces of all processes; on the main one, where they lie.

    Raises:
        OSError: one could not, on any process; raised on all.
    """
    writer = _Writer(folder, overwrite=False)
    try:
        with _alone(world.size == 1):
            metadata = save(
                dict(pieces),
                storage_writer=writer,
                process_group=world.group,
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        raise OSError(f"rank {rank} could not write its part: {cause}") from error
    checksums = world.gather_all(_checksums(metadata, folder, world.rank))
    failed = [found for found in checksums if isinstance(found, str)]
    if failed:
        raise OSError(f"what was written could not be read back: {failed[0]}")
    known = {index: value for found in checksums for index, value in found.items()}
    return {key: _described(key, one, metadata, known) for key, one in _tensors(metadata)}


class _Writer(FileSystemWriter):
    def write_data(self, plan: Any, planner: Any) -> Any:
        """As torch's, whose errors hide why a file could not be written."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _checksums(metadata: Metadata, folder: Path, rank: int) -> dict[Any, int] | str:
    """Of what this process has written; a sentence if it cannot be read back."""
    try:
        return {
            (index.fqn, tuple(index.offset)): shards.checksum(
                folder / stored.relative_path, stored.offset, stored.length
            )
            for index, stored in metadata.storage_data.items()
            if stored.relative_path.startswith(f"__{rank}_")
        }
    except OSError as error:
        return f"rank {rank}: {error}"


def _tensors(metadata: Metadata) -> Iterable[tuple[str, TensorStorageMetadata]]:
    for key, described in metadata.state_dict_metadata.items():
        if isinstance(described, TensorStorageMetadata):
            yield key, described


def _described(
    key: str, tensor: TensorStorageMetadata, metadata: Metadata, checksums: dict[Any, int]
) -> Piecewise:
    chunks = []
    for box in tensor.chunks:
        stored = metadata.storage_data[MetadataIndex(key, box.offsets)]
        where = (stored.relative_path, stored.offset, stored.length)
        checksum = checksums[key, tuple(box.offsets)]
        chunks.append(Chunk(list(box.offsets), list(box.sizes), *where, checksum))
    return Piecewise(list(tensor.size), skeleton.dtype_name(tensor.properties.dtype), chunks)


# ---- reading ------------------------------------------------------------------------------------


def fill(
    content: Any,
    reference: Any,
    path: Path,
    empty: Callable[[tuple[int, ...], torch.dtype], Tensor],
) -> Any:
    """The content of the sharded checkpoint ``path`` with its tensors; what is read is verified.

    Args:
        content: what the file itself holds of it.
        reference: what it says of its folder.
        path: the file.
        empty: the tensor to be filled for a shape and type: whole, or the part of this process.

    Raises:
        DamagedCheckpointError: it cannot be read, or was altered.
    """
    folder = shards.folder_of(path, reference)
    index = read_index(path, folder, reference).tensors
    found = {}
    for key, described in skeleton.descriptions(content).items():
        like = [described["shape"], described["dtype"]]
        if key not in index or [index[key].shape, index[key].dtype] != like:
            raise damaged(path, ValueError(f"{key!r} is not in its folder"))
        dtype = skeleton.dtype_of(index[key].dtype)
        found[key] = empty(tuple(described["shape"]), dtype or torch.float32)
    reader = _Reader(path, folder, index)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with _alone(True):
            load(found, storage_reader=reader, planner=planner, no_dist=True)
    except CheckpointException as error:  # whatever torch says of bytes that mean nothing
        cause = error.failures[0][0]
        raise cause if isinstance(cause, CheckpointError) else damaged(path, cause) from None
    return skeleton.put_in(content, lambda one: found[one["key"]])


@dataclass
class _Stored:
    """What torch's reader asks about a piece."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...] = ()


class _Reader(FileSystemReader):
    """torch's reader, told of its folder by a verified index instead of by a pickled file."""

    def __init__(self, path: Path, folder: Path, index: dict[str, Piecewise]) -> None:
        super().__init__(folder)
        self._checkpoint, self._folder, self._index = path, folder, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors: dict[str, Any] = {}
        where = {}
        for key, one in self._index.items():
            boxes = [(torch.Size(c.offsets), torch.Size(c.sizes)) for c in one.chunks]
            tensors[key] = TensorStorageMetadata(
                TensorProperties(skeleton.dtype_of(one.dtype) or torch.float32),
                torch.Size(one.shape),
                [ChunkStorageMetadata(*box) for box in boxes],
            )
            for chunk in one.chunks:
                stored = _Stored(chunk.file, chunk.at, chunk.bytes)
                where[MetadataIndex(key, chunk.offsets)] = stored
        return Metadata(tensors, storage_data=where, storage_meta=StorageMeta())

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Each process verifies what it reads."""
        wanted = {(item.storage_index.fqn, tuple(item.storage_index.offset)) for item in plan.items}
        for key, tensor in self._index.items():
            for chunk in tensor.chunks:
                if (key, tuple(chunk.offsets)) in wanted:
                    shards.require_whole(self._checkpoint, self._folder, key, chunk)
        return super().read_data(plan, planner)


@contextmanager
def _alone(is_alone: bool) -> Iterator[None]:
    """Inside ``with`` torch does not warn one process of what is meant."""
    if not is_alone:  # filters are not to be touched beside training
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
