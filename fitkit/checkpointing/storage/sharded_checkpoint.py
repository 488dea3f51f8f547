"""Write and read a sharded checkpoint, together with the other ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.format import schema, tensor_stubs
from fitkit.checkpointing.storage import (
    atomic_write,
    shard_chunks,
    shard_folder,
    shard_index,
    temp_files,
)
from fitkit.checkpointing.storage.is_checkpoint import SHARDS_SUFFIX
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.checkpointing.storage.shard_chunks import Empty
from fitkit.checkpointing.storage.shard_index import Part, damaged_shards, index_name, read_index
from fitkit.core.formatting import dtype_name
from fitkit.distributed.dtensor import is_dtensor, own_box
from fitkit.distributed.world import World

# torch's metadata is one file, which rank 0 composes from all indexes: up to 200 bytes per chunk.
_MAX_BYTES_FOR_METADATA = 4 << 20

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
            places = _write_shards(tensors, temporary, world)
            folder = temporary.with_name(f"{temporary.name.split('.')[1]}{SHARDS_SUFFIX}")
            os.rename(temporary, folder)
            atomic_write.flush_folder(path.parent)
            for parent in {name.parent for name in also}:
                shard_folder.link_into(folder, parent)
            reference = {"folder": folder.name, **places}
            file = {schema.REFERENCE_KEY: reference, schema.CONTENT_KEY: schema.in_file_order(rest)}
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
    tensors = tensor_stubs.extract_tensors(content, is_dtensor)[1]
    world.gather(_write_own(tensors, Path(folder), world.rank))
    return bool(world.broadcast(None))


def _write_own(tensors: dict[str, Tensor], folder: Path, rank: int) -> list[int] | str | None:
    """Write this rank's shards and their index.

    Returns:
        size and checksum of the index; ``None`` if there is nothing to write; after an error a
        message, so that no rank waits for this one.
    """
    try:
        index = shard_chunks.write_chunks(tensors, folder, rank)
        if rank and not index.files:
            return None
        return shard_index.write_index(folder / index_name(rank), index)
    except Exception as error:  # noqa: BLE001  rank 0 raises it
        return f"rank {rank} could not write its part: {error}"


def _write_shards(tensors: dict[str, Tensor], folder: Path, world: World) -> dict[str, Any]:
    """Write the shards of all ranks; return what the checkpoint says about them.

    Raises:
        OSError: a rank could not write.
    """
    gathered = world.gather(_write_own(tensors, folder, world.rank)) or []
    for problem in (one for one in gathered if isinstance(one, str)):
        raise OSError(problem)
    entries = {index_name(rank): one for rank, one in enumerate(gathered) if one is not None}
    written = {shard_index.INDEXES_KEY: entries}
    names = [shard_folder.MARKER_NAME]
    if sum(num_bytes for num_bytes, _ in entries.values()) <= _MAX_BYTES_FOR_METADATA:
        from fitkit.checkpointing.storage import torch_metadata  # a second of imports

        torch_metadata.write_metadata(folder, read_index(folder, folder, written))
        names.append(torch_metadata.METADATA_NAME)
    written[shard_index.FILES_KEY] = shard_folder.describe_files(folder, names)
    atomic_write.flush_folder(folder)
    return written


# ---- reading ------------------------------------------------------------------------------------


def read(content: Any, reference: Any, path: Path, empty: Empty) -> Any:
    """The ``content`` of the checkpoint ``path`` with tensors from its folder for its stubs.

    ``empty`` allocates a tensor for a shape, a type and a device: a whole one, or the shard of this
    rank, of which only the parts are read that it needs. What is read is verified.
    """
    folder = shard_folder.find_folder(path, reference)
    stubs = {
        key: (tuple(stub["shape"]), tensor_stubs.dtype_from_name(stub["dtype"]) or torch.float32)
        for key, stub in tensor_stubs.find_stubs(content).items()
    }
    # nothing is allocated before it is known that the folder has as many bytes
    parts = {
        key: Part(list(shape), *own_box(empty(shape, dtype, "meta")))
        for key, (shape, dtype) in stubs.items()
    }
    index = read_index(path, folder, reference, parts).tensors
    tensors = {}
    for key, (shape, dtype) in stubs.items():
        stored = index.get(key)
        if stored is None or (stored.shape, stored.dtype) != (list(shape), dtype_name(dtype)):
            raise damaged_shards(path, f"{key!r} is not in its folder")
        tensors[key] = empty(shape, dtype, "cpu")
        shard_chunks.read_part(path, folder, key, stored, tensors[key])
    return tensor_stubs.insert_tensors(content, lambda stub: tensors[stub["key"]])
