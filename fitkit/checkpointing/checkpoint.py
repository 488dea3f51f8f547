"""A checkpoint, whatever its form: a file, or a file with a folder of shards beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing import archive, files, schema, shards, skeleton
from fitkit.core.errors import CheckpointError
from fitkit.core.tree import iterate_tensors
from fitkit.runtime.world import World

# What of a whole state lies spread over processes that share a model.
_SPREAD = ("model_state_dict", "optimizer_state_dict", "ema_state_dict")

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]


def verify(path: Path) -> None:
    """Check every checksum that the checkpoint carries.

    Raises:
        CheckpointNotFoundError: there is no such file.
        DamagedCheckpointError: it is truncated or altered, or no checkpoint.
    """
    archive.verify(path)
    reference = _reference(archive.read_without_tensors(path))
    if reference is not None:
        shards.verify(path, reference)


def read(path: Path, *, mmap: bool = False, empty: Empty | None = None) -> Any:
    """The verified content of a checkpoint; nothing in it is executed.

    Args:
        path: the file.
        mmap: as in ``archive.read``; what is in shards is read in any case.
        empty: the tensor to be filled for the shape and type of a sharded one; default: a whole
            tensor on the CPU.

    Raises:
        CheckpointError: it cannot be used; see ``archive.read``.
    """
    content = archive.read(path, mmap=mmap)
    reference = _reference(content)
    if reference is None:
        return content
    from fitkit.checkpointing import sharded  # a second of imports

    empty = empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype))
    return sharded.fill(content.get(shards.CONTENT), reference, path, empty)


def read_without_tensors(path: Path) -> Any:
    """The content with tensors on the device ``"meta"``, in milliseconds at any size.

    Raises:
        CheckpointError: as ``read``; that shards are there is not looked at.
    """
    content = archive.read_without_tensors(path)
    if _reference(content) is None:
        return content
    return skeleton.put_in(content.get(shards.CONTENT), _shape_only)


def size_bytes(path: Path) -> int:
    """The size of the file, and of its shards as far as they can be found."""
    found = [path]
    if not any(path.parent.glob(f"*{shards.SUFFIX}")):  # no need to read what it names
        return path.stat().st_size
    with suppress(CheckpointError):
        reference = _reference(archive.read_without_tensors(path))
        if reference is not None:
            found += shards.folder_of(path, reference).iterdir()
    return sum(one.stat().st_size for one in found)


def _shape_only(described: dict[str, Any]) -> Tensor:
    dtype = skeleton.dtype_of(described["dtype"])
    return torch.empty(described["shape"], dtype=dtype, device="meta")


def _reference(content: Any) -> dict[str, Any] | None:
    found = content.get(shards.REFERENCE) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def duplicate(source: Path, path: Path) -> None:
    """Make ``path`` the same checkpoint as ``source``.

    Raises:
        SaveError: it could not be written.
    """
    reference = _reference(archive.read_without_tensors(source))
    if reference is not None:
        with files.told(path):
            shards.share(shards.folder_of(source, reference), path.parent)
    files.duplicate(source, path)


def convert(source: Path, target: Path, *, sharded: bool) -> None:
    """Write the checkpoint ``source`` to ``target`` in the other form, or in the same.

    Args:
        source: the file; it stays as it is.
        target: the file to write.
        sharded: with its tensors in a folder beside it, from which each of several processes reads
            its part; else all in one file.

    Raises:
        CheckpointError: ``source`` cannot be used.
        SaveError: ``target`` could not be written; an earlier file of that name is as it was.
    """
    content = read(source, mmap=True)
    if not sharded:
        files.write(content, target)
        return
    from fitkit.checkpointing import sharded as writing  # a second of imports

    parts = [content[key] for key in _SPREAD] if schema.is_full(content) else [content]
    large = {id(one) for one in iterate_tensors(parts) if one.ndim and one.layout is torch.strided}
    writing.write(content, target, world=World(), takes=lambda value: id(value) in large)


def remove(path: Path) -> str | None:
    """Remove a checkpoint that may be gone already, and its shards if they are nobody else's.

    Returns:
        a sentence that says why it is still there; ``None`` if it is not.
    """
    problem = files.remove(path)
    if problem is None and path.parent.is_dir():
        shards.sweep(path.parent)
    return problem
