"""The shard folder next to a sharded checkpoint, in which each rank has written its shards.

The checkpoint itself is an ordinary file that is written last and names its folder: if the file
exists, the folder is complete. A folder is never written to twice, so no crash can mix old and new
data. Each rank writes its shards, and an index of them with a checksum for each part of a tensor.
torch's own ``.metadata`` is there for torch's tools; fitkit does not read it, because unpickling it
could run code.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage import atomic_write, safe_load, temp_files
from fitkit.checkpointing.storage.is_checkpoint import SHARDS_SUFFIX, may_be_checkpoint
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.checkpointing.storage.shard_index import Chunk, damaged_shards, read_index
from fitkit.core.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    UnsafeCheckpointError,
)

MARKER_NAME = "fitkit.json"
_CHUNK_BYTES = 1 << 20


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, list[int]]:
    """Size and checksum of files in ``folder``."""
    paths = {name: folder / name for name in names}
    return {name: [path.stat().st_size, checksum(path)] for name, path in paths.items()}


def find_folder(path: Path, reference: Any) -> Path:
    """The shard folder of the checkpoint ``path``; raises if it is missing or not named."""
    name = reference.get("folder") if isinstance(reference, dict) else None
    if not isinstance(name, str) or not name.endswith(SHARDS_SUFFIX) or Path(name).name != name:
        raise DamagedCheckpointError(f"{str(path)!r} does not say where its tensors are.")
    folder = path.resolve().parent / name
    if not os.path.isdir(folder):  # unlike Path.is_dir, raises for no name
        raise DamagedCheckpointError(
            f"{str(path)!r} has its tensors in the folder {name!r}, which is not next to it: keep "
            f"them together when you move or copy a checkpoint."
        )
    return folder


def verify(path: Path, reference: Any) -> None:
    """Check every checksum of the shard folder of the checkpoint ``path``."""
    folder = find_folder(path, reference)
    index = read_index(path, folder, reference)
    chunks = [(key, chunk) for key, tensor in index.tensors.items() for chunk in tensor.chunks]
    for key, chunk in chunks:
        verify_chunk(path, folder, key, chunk)
    for name in index.files.keys() - {chunk.file for _, chunk in chunks}:
        file = index.files[name]
        if file.crc32 is None:
            raise damaged_shards(path, f"{name!r} has no checksum")
        try:
            size = max(file.bytes, (folder / name).stat().st_size)
        except OSError as error:
            raise damaged_shards(path, error) from error
        verify_chunk(path, folder, name, Chunk([], [], name, 0, size, file.crc32))


def verify_chunk(path: Path, folder: Path, key: str, chunk: Chunk) -> None:
    """Check the checksum of a part of the tensor ``key``; raises ``DamagedCheckpointError``."""
    try:
        is_intact = checksum(folder / chunk.file, chunk.at, chunk.bytes) == chunk.crc32
    except OSError as error:
        raise damaged_shards(path, error) from error
    if not is_intact:
        raise damaged_shards(path, f"the checksum of {key!r} in {chunk.file!r} does not match")


def checksum(path: Path, at: int = 0, size: int | None = None) -> int:
    """The CRC-32 of ``size`` bytes from offset ``at``, by default to the end of the file."""
    value = 0
    if path.exists() and not path.is_file():  # opening a pipe could wait forever
        raise OSError(f"{path.name!r} is no ordinary file")
    with path.open("rb") as file:
        file.seek(at)
        left = os.fstat(file.fileno()).st_size - at if size is None else size
        while left > 0 and (data := file.read(min(left, _CHUNK_BYTES))):
            value = zlib.crc32(data, value)
            left -= len(data)
    return value


def link_into(folder: Path, parent: Path) -> None:
    """Have the shard ``folder`` in ``parent`` too: hard links where possible, else copies."""
    if parent.resolve() == folder.parent.resolve() or (parent / folder.name).exists():
        return
    with temp_files.temp_folder(parent) as copy:
        for source in folder.iterdir():
            atomic_write.link_or_copy(source, copy / source.name)
        atomic_write.flush_folder(copy)
        os.rename(copy, parent / folder.name)
    atomic_write.flush_folder(parent)


def mark(folder: Path, record: RunRecord | None) -> None:
    """Write into a new shard folder that fitkit made it, and for which run."""
    run_id = None if record is None else record.run_id
    (folder / MARKER_NAME).write_text(json.dumps({"run_id": run_id}))


def _is_ours(folder: Path, run_id: str | None) -> bool:
    """Whether fitkit made ``folder``, for the run ``run_id`` unless that is ``None``."""
    try:
        marker = json.loads((folder / MARKER_NAME).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    is_marker = isinstance(marker, dict) and "run_id" in marker
    return is_marker and run_id in (None, marker["run_id"])


def remove_orphans(parent: Path, run_id: str | None = None) -> None:
    """Delete the shard folders in ``parent`` that fitkit made and no checkpoint there refers to.

    If a checkpoint there cannot be read, none is deleted: it may refer to any of them. A writer
    keeps its new folder locked until the checkpoint that refers to it is written.

    Args:
        parent: the folder.
        run_id: delete only those of this run.
    """
    locks = {}
    for path in parent.glob(f"*{SHARDS_SUFFIX}"):
        descriptor = None
        if _is_ours(path, run_id):  # a run writes one file at a time, so it needs no lock
            descriptor = temp_files.try_lock(path, else_unlocked=run_id is not None)
        if descriptor is not None:
            locks[path.name] = descriptor
    try:
        referenced = _referenced_in(parent) if locks else None
        for name in () if referenced is None else locks.keys() - referenced:
            # first a temporary name: half deleted, without its marker, it would be nobody's
            doomed = temp_files.unique_path(parent)
            with suppress(OSError):
                os.rename(parent / name, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    finally:
        for descriptor in locks.values():
            os.close(descriptor)


def _referenced_in(parent: Path) -> set[str] | None:
    """The names of shard folders that checkpoints in ``parent`` refer to; ``None``: not known."""
    names = set()
    for path in filter(may_be_checkpoint, sorted(parent.iterdir())):
        try:
            content = safe_load.read_without_tensors(path)
        except (UnsafeCheckpointError, CheckpointNotFoundError):  # not ours, or removed meanwhile
            continue
        except CheckpointError:
            return None
        reference = content.get(schema.REFERENCE_KEY) if isinstance(content, dict) else None
        if isinstance(reference, dict):
            names.add(reference.get("folder", ""))
    return names
