"""A checkpoint in either form: one file, or a file with a shard folder next to it.

Only this module tells the two forms apart. Savers, retention and the catalog know only files.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.format import schema, tensor_stubs
from fitkit.checkpointing.storage import (
    atomic_write,
    run_record,
    safe_load,
    shard_folder,
    sharded_checkpoint,
)
from fitkit.checkpointing.storage.is_checkpoint import SHARDS_SUFFIX
from fitkit.checkpointing.storage.shard_chunks import Empty as Empty
from fitkit.core.errors import CheckpointError
from fitkit.core.tree import iterate_tensors
from fitkit.distributed.world import World


def verify(path: Path) -> None:
    """Check every checksum of the checkpoint.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: it is truncated, altered, or not a checkpoint.
    """
    safe_load.verify(path)
    reference = _shard_reference(safe_load.read_without_tensors(path))
    if reference is not None:
        shard_folder.verify(path, reference)


def read(path: Path, *, mmap: bool = False, empty: Empty | None = None) -> Any:
    """The verified content of a checkpoint; nothing in it is executed.

    Args:
        path: the file.
        mmap: map tensors from the file instead of copying them to memory; the file must not be
            changed in place while they are used. Shards are always copied.
        empty: allocates the tensor for each sharded one from its shape, its type and a device,
            ``"cpu"`` or ``"meta"``; default: a whole tensor.

    Raises:
        CheckpointError: it cannot be used: missing, damaged, or unsafe to read.
    """
    content = safe_load.read(path, mmap=mmap)
    reference = _shard_reference(content)
    if reference is None:
        return content
    empty = empty or (lambda *args: torch.empty(args[0], dtype=args[1], device=args[2]))
    return sharded_checkpoint.read(content.get(schema.CONTENT_KEY), reference, path, empty)


def read_without_tensors(path: Path) -> Any:
    """The content with tensors on the device ``"meta"``, in milliseconds at any size.

    Raises:
        CheckpointError: as ``read``, but shards may be missing.
    """
    content = safe_load.read_without_tensors(path)
    if _shard_reference(content) is None:
        return content
    return tensor_stubs.insert_tensors(content.get(schema.CONTENT_KEY), _meta_tensor)


def size_bytes(path: Path) -> int:
    """The size of the file and of its shards, if they are found."""
    files = [path]
    if any(path.parent.glob(f"*{SHARDS_SUFFIX}")):  # else there is no need to read the file
        with suppress(CheckpointError):
            reference = _shard_reference(safe_load.read_without_tensors(path))
            if reference is not None:
                files += shard_folder.find_folder(path, reference).iterdir()
    return sum(file.stat().st_size for file in files)


def _meta_tensor(stub: dict[str, Any]) -> Tensor:
    dtype = tensor_stubs.dtype_from_name(stub["dtype"])
    return torch.empty(stub["shape"], dtype=dtype, device="meta")


def _shard_reference(content: Any) -> dict[str, Any] | None:
    reference = content.get(schema.REFERENCE_KEY) if isinstance(content, dict) else None
    return reference if isinstance(reference, dict) else None


def duplicate(source: Path, path: Path) -> None:
    """Make ``path`` the same checkpoint as ``source``, by hard links where possible.

    Raises:
        SaveError: it could not be written.
    """
    reference = _shard_reference(safe_load.read_without_tensors(source))
    if reference is not None:
        with atomic_write.as_save_error(path):
            shard_folder.link_into(shard_folder.find_folder(source, reference), path.parent)
    atomic_write.duplicate(source, path)


def convert(source: Path, target: Path, *, sharded: bool) -> None:
    """Write the checkpoint ``source`` to ``target`` as one file, or sharded.

    Args:
        source: the file; not changed.
        target: the file to write.
        sharded: with the tensors in a folder next to the file, from which each rank reads its
            part; else all in one file.

    Raises:
        CheckpointError: ``source`` cannot be used.
        SaveError: ``target`` could not be written; an earlier file of that name is unchanged.
    """
    content, record = read(source, mmap=True), run_record.read(source)
    if not sharded:
        atomic_write.write(content, target, record=record)
        return
    is_full = schema.is_full(content)
    parts = [content.get(key) for key in schema.SHARDED_KEYS] if is_full else [content]
    large = {id(it) for it in iterate_tensors(parts) if it.ndim and it.layout is torch.strided}
    sharded_checkpoint.write(
        content, target, world=World(), is_sharded=lambda value: id(value) in large, record=record
    )


def remove(path: Path, run_id: str | None = None) -> str | None:
    """Delete a checkpoint, if it exists, and its shards, if no other checkpoint uses them.

    Args:
        path: the file.
        run_id: delete only shards of this run.

    Returns:
        a message if it is still there, else ``None``.
    """
    problem = atomic_write.remove(path)
    if problem is None and path.parent.is_dir():
        shard_folder.remove_orphans(path.parent, run_id)
    return problem
