"""Write and read a sharded checkpoint; its shards go through ``torch.distributed.checkpoint``.

Importing this module takes a second, so other modules import it only when they meet such a
checkpoint.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from fitkit.checkpointing.format import tensor_stubs
from fitkit.checkpointing.storage import atomic_write, shard_folder, temp_files
from fitkit.checkpointing.storage.is_checkpoint import SHARDS_SUFFIX
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.checkpointing.storage.shard_index import (
    Chunk,
    ShardedTensor,
    damaged_shards,
    read_index,
)
from fitkit.core.errors import CheckpointError
from fitkit.distributed.dtensor import is_dtensor
from fitkit.distributed.world import World

# ---- writing ------------------------------------------------------------------------------------


def write(
    content: Any,
    path: Path,
    also: Iterable[Path] = (),
    *,
    world: World,
    is_sharded: Callable[[Any], bool] = is_dtensor,
    record: RunRecord | None = None,
) -> None:
    """Write a sharded checkpoint; called on rank 0 while the others call ``write_own_shards``.

    The tensors that ``is_sharded`` selects go to a new folder. When all of them are durable, the
    checkpoint file is written. Raises ``SaveError`` if a rank could not write; an earlier
    checkpoint of that name is unchanged.
    """
    rest, tensors = tensor_stubs.extract_tensors(content, is_sharded)
    also, is_written = list(also), False
    try:
        with atomic_write.as_save_error(path), temp_files.temp_folder(path.parent) as temporary:
            shard_folder.mark(temporary, record)
            world.broadcast(str(temporary.resolve()))
            index = shard_folder.write_index(temporary, _write_shards(tensors, temporary, world))
            folder = temporary.with_name(f"{temporary.name.split('.')[1]}{SHARDS_SUFFIX}")
            os.rename(temporary, folder)
            atomic_write.flush_folder(path.parent)
            for parent in {name.parent for name in also}:
                shard_folder.link_into(folder, parent)
            reference = {"folder": folder.name, **index}
            file = {shard_folder.REFERENCE_KEY: reference, shard_folder.CONTENT_KEY: rest}
            atomic_write.write(file, path, also, record)
        is_written = True
    finally:
        world.broadcast(is_written)
        for parent in {path.parent, *(name.parent for name in also)}:
            shard_folder.remove_orphans(parent, None if record is None else record.run_id)


def write_own_shards(content: Any, world: World) -> bool:
    """Write the shards of this rank, not 0; return whether rank 0 wrote the checkpoint."""
    folder = world.broadcast(None)
    if not isinstance(folder, str):
        return False
    with suppress(OSError):  # rank 0 raises it
        _write_shards(tensor_stubs.extract_tensors(content, is_dtensor)[1], Path(folder), world)
    return bool(world.broadcast(None))


def _write_shards(
    tensors: dict[str, Tensor], folder: Path, world: World
) -> dict[str, ShardedTensor]:
    """Write the shards of all ranks; raises ``OSError`` on all if one rank could not write."""
    try:
        # warning filters are global, so with other ranks they stay as they are, next to training
        with _silence_warnings() if world.size == 1 else nullcontext():
            metadata = save(
                dict(tensors),
                storage_writer=_Writer(folder, overwrite=False),
                process_group=world.group,
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        raise OSError(f"rank {rank} could not write its part: {cause}") from error
    gathered = world.gather_all(_checksums(metadata, folder, world.rank))
    problems = [problem for problem in gathered if isinstance(problem, str)]
    if problems:
        raise OSError(f"what was written could not be read back: {problems[0]}")
    checksums = {index: value for of_rank in gathered for index, value in of_rank.items()}
    return {
        key: _sharded_tensor(key, tensor, metadata, checksums)
        for key, tensor in metadata.state_dict_metadata.items()
        if isinstance(tensor, dcp.TensorStorageMetadata)
    }


class _Writer(FileSystemWriter):
    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write as torch does, but raise the OSError that torch hides in a RuntimeError."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _checksums(metadata: dcp.Metadata, folder: Path, rank: int) -> dict[Any, int] | str:
    """The checksums of this rank's shards, or a message if they cannot be read back."""
    try:
        return {
            (index.fqn, tuple(index.offset)): shard_folder.checksum(
                folder / stored.relative_path, stored.offset, stored.length
            )
            for index, stored in metadata.storage_data.items()
            if stored.relative_path.startswith(f"__{rank}_")
        }
    except OSError as error:
        return f"rank {rank}: {error}"


def _sharded_tensor(
    key: str, tensor: dcp.TensorStorageMetadata, metadata: dcp.Metadata, checksums: dict[Any, int]
) -> ShardedTensor:
    chunks = []
    for box in tensor.chunks:
        stored = metadata.storage_data[dcp.MetadataIndex(key, box.offsets)]
        span = (stored.relative_path, stored.offset, stored.length)
        checksum = checksums[key, tuple(box.offsets)]
        chunks.append(Chunk(list(box.offsets), list(box.sizes), *span, checksum))
    dtype = tensor_stubs.dtype_name(tensor.properties.dtype)
    return ShardedTensor(list(tensor.size), dtype, chunks)


# ---- reading ------------------------------------------------------------------------------------


def read(
    content: Any,
    reference: Any,
    path: Path,
    empty: Callable[[tuple[int, ...], torch.dtype], Tensor],
) -> Any:
    """The ``content`` of the checkpoint ``path`` with tensors from its folder for its stubs.

    ``empty`` allocates a tensor for a shape and type: a whole one, or the shard of this rank. What
    is read is verified.
    """
    folder = shard_folder.find_folder(path, reference)
    index = read_index(path, folder, reference).tensors
    tensors = {}
    for key, stub in tensor_stubs.find_stubs(content).items():
        stored = index.get(key)
        if stored is None or [stored.shape, stored.dtype] != [stub["shape"], stub["dtype"]]:
            raise damaged_shards(path, f"{key!r} is not in its folder")
        tensors[key] = empty(tuple(stored.shape), _dtype(stored))
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with _silence_warnings():
            load(
                tensors, storage_reader=_Reader(path, folder, index), planner=planner, no_dist=True
            )
    except CheckpointException as error:  # torch wraps whatever its unpickling raised
        cause = error.failures[0][0]
        raise cause if isinstance(cause, CheckpointError) else damaged_shards(path, cause) from None
    return tensor_stubs.insert_tensors(content, lambda stub: tensors[stub["key"]])


def _dtype(tensor: ShardedTensor) -> torch.dtype:
    return tensor_stubs.dtype_from_name(tensor.dtype) or torch.float32  # read_index checked it


@dataclass
class _Stored:
    """Where a shard is, as torch's reader expects it."""

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...] = ()


class _Reader(FileSystemReader):
    """torch's reader, with the verified index in place of torch's pickled metadata."""

    def __init__(self, path: Path, folder: Path, index: dict[str, ShardedTensor]) -> None:
        super().__init__(folder)
        self._checkpoint, self._folder, self._index = path, folder, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp.Metadata:
        tensors: dict[str, Any] = {}
        shards = {}
        for key, tensor in self._index.items():
            tensors[key] = dcp.TensorStorageMetadata(
                dcp.TensorProperties(_dtype(tensor)),
                torch.Size(tensor.shape),
                [
                    dcp.ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
                    for chunk in tensor.chunks
                ],
            )
            for chunk in tensor.chunks:
                stored = _Stored(chunk.file, chunk.at, chunk.bytes)
                shards[dcp.MetadataIndex(key, chunk.offsets)] = stored
        return dcp.Metadata(tensors, storage_data=shards, storage_meta=dcp.StorageMeta())

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Verify the shards that this rank reads, then read them."""
        needed = {(item.storage_index.fqn, tuple(item.storage_index.offset)) for item in plan.items}
        for key, tensor in self._index.items():
            for chunk in tensor.chunks:
                if (key, tuple(chunk.offsets)) in needed:
                    shard_folder.verify_chunk(self._checkpoint, self._folder, key, chunk)
        return super().read_data(plan, planner)


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Suppress torch's warnings, that one process works alone and others; they may be errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
