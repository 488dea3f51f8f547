"""Shards: the folder beside a sharded checkpoint, in which each process has written its pieces.

The checkpoint itself is an ordinary file that is written last. It says which folder is its own; a
folder is never written to again. What lies where in it is in its ``index.json``, with a checksum
for each piece. torch's own ``.metadata`` is there for torch's tools; nothing here reads it, because
reading it can run code.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitkit.checkpointing import archive, files, temporary
from fitkit.checkpointing.shard_index import NAME, Chunk, Piecewise, damaged, read_index
from fitkit.core.errors import CheckpointError, DamagedCheckpointError

SUFFIX = ".shards"
REFERENCE = "__fitkit_shards__"  # the key of a checkpoint that says which folder is its own
CONTENT = "content"  # and that of what it holds
_CHUNK_BYTES = 1 << 20


# ---- the folder ---------------------------------------------------------------------------------


def seal(folder: Path, tensors: Mapping[str, Piecewise]) -> dict[str, Any]:
    """Write the index, and make all of the folder durable.

    Returns:
        what the checkpoint has to know of it, but for its name.
    """
    index = {
        "tensors": {
            key: {**one._asdict(), "chunks": [chunk._asdict() for chunk in one.chunks]}
            for key, one in tensors.items()
        },
        "files": {
            path.name: [path.stat().st_size, checksum(path)] for path in sorted(folder.iterdir())
        },
    }
    text = json.dumps(index).encode()
    with (folder / NAME).open("xb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    files.flush_folder(folder)
    return {"bytes": len(text), "crc32": zlib.crc32(text)}


def folder_of(path: Path, reference: Any) -> Path:
    """The folder of the checkpoint ``path``.

    Raises:
        DamagedCheckpointError: it is not there, or ``reference`` names none.
    """
    name = reference.get("folder") if isinstance(reference, dict) else None
    if not isinstance(name, str) or not name.endswith(SUFFIX) or Path(name).name != name:
        raise DamagedCheckpointError(f"{str(path)!r} does not say where its tensors are.")
    folder = path.resolve().parent / name
    if not os.path.isdir(folder):  # whatever the name
        raise DamagedCheckpointError(
            f"{str(path)!r} has its tensors in the folder {name!r}, which is not beside it: keep "
            f"them together when you move or copy a checkpoint."
        )
    return folder


def verify(path: Path, reference: Any) -> None:
    """Check every checksum of the folder that belongs to the checkpoint ``path``.

    Raises:
        DamagedCheckpointError: one does not match.
    """
    folder = folder_of(path, reference)
    index = read_index(path, folder, reference)
    for key, tensor in index.tensors.items():
        for chunk in tensor.chunks:
            require_whole(path, folder, key, chunk)
    checked = {chunk.file for tensor in index.tensors.values() for chunk in tensor.chunks}
    for name, about in index.files.items():
        if name not in checked:
            size = max(about.bytes, _size(path, folder / name))
            require_whole(path, folder, name, Chunk([], [], name, 0, size, about.crc32))


def _size(path: Path, file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise damaged(path, error) from error


def require_whole(path: Path, folder: Path, key: str, chunk: Chunk) -> None:
    """Fail unless a piece is as it was written.

    Raises:
        DamagedCheckpointError: it is not.
    """
    try:
        is_whole = checksum(folder / chunk.file, chunk.at, chunk.bytes) == chunk.crc32
    except OSError as error:
        raise damaged(path, error) from error
    if not is_whole:
        told = f"the checksum of {key!r} in {chunk.file!r} does not match"
        raise damaged(path, ValueError(told))


def checksum(path: Path, at: int = 0, size: int | None = None) -> int:
    """The CRC-32 of ``size`` bytes from ``at`` on; ``None``: up to the end."""
    value = 0
    with path.open("rb") as file:
        file.seek(at)
        left = os.fstat(file.fileno()).st_size - at if size is None else size
        while left > 0 and (data := file.read(min(left, _CHUNK_BYTES))):
            value = zlib.crc32(data, value)
            left -= len(data)
    return value


def is_inside(path: Path) -> bool:
    """Whether a file is in the shards of a checkpoint, and so none by itself."""
    return path.parent.name.endswith(SUFFIX)


# ---- folders come and go with their checkpoints -------------------------------------------------


def share(folder: Path, parent: Path) -> None:
    """Have the shards ``folder`` in ``parent`` too: links where possible, else copies.

    Raises:
        OSError: it cannot be written.
    """
    if parent.resolve() == folder.parent.resolve() or (parent / folder.name).exists():
        return
    with temporary.new_folder(parent) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True, copy_function=_link)
        files.flush_folder(copy)
        os.rename(copy, parent / folder.name)
    files.flush_folder(parent)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())
    return target


def sweep(folder: Path) -> None:
    """Remove the shards in ``folder`` that no checkpoint there names.

    Whoever is about to write the checkpoint of one holds it until then.
    """
    held = {}
    for path in folder.glob(f"*{SUFFIX}"):
        descriptor = temporary.try_lock(path)
        if descriptor is not None:
            held[path.name] = descriptor
    try:
        for name in held.keys() - _named_in(folder) if held else ():
            shutil.rmtree(folder / name, ignore_errors=True)
    finally:
        for descriptor in held.values():
            os.close(descriptor)


def _named_in(folder: Path) -> set[str]:
    """The shards that checkpoints in ``folder`` name."""
    named = set()
    for path in sorted(folder.iterdir()):
        if files.is_checkpoint_like(path):
            try:
                content = archive.read_without_tensors(path)
            except CheckpointError:  # no checkpoint, or one that is of no use any more
                continue
            reference = content.get(REFERENCE) if isinstance(content, dict) else None
            if isinstance(reference, dict):
                named.add(reference.get("folder", ""))
    return named
