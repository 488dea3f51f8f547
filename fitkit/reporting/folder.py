"""What lies in a run's folder: checkpoints, each with its condition, and logs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fitkit.checkpointing import checkpoint, files, schema, shards, temporary
from fitkit.checkpointing.metadata import Metadata, read_metadata
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from fitkit.reporting.curves import Curves
from fitkit.reporting.logs import read_log

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt")
LOG_SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Checkpoint:
    """A file that is, or was to be, a checkpoint.

    Attributes:
        path: the file.
        name: its path below the run's folder.
        size_bytes: its size.
        metadata: what it holds; ``None`` for weights alone and for what cannot be read.
        problem: why it cannot be used, or ``None``.
        is_verified: whether all of its checksums were looked at.
    """

    path: Path
    name: str
    size_bytes: int
    metadata: Metadata | None
    problem: str | None
    is_verified: bool


def find_checkpoints(folder: Path, *, verify: bool) -> list[Checkpoint]:
    """The checkpoints in a folder and below it, by their place in the run.

    Args:
        folder: where to look.
        verify: also check the checksums of all tensors, which reads every file as a whole.
    """
    found: list[Checkpoint] = []
    known: dict[tuple[int, int], tuple[Metadata | None, str | None]] = {}
    for path in _below(folder):
        is_named = path.suffix in CHECKPOINT_SUFFIXES
        if path.name.endswith(temporary.SUFFIX) or not (is_named or files.is_checkpoint_like(path)):
            continue
        status = path.stat()
        file = (status.st_dev, status.st_ino)  # several names of one file are read once
        if file not in known:
            known[file] = _examine(path, verify=verify)
        metadata, problem = known[file]
        if is_named or metadata is not None:  # others are archives of another kind
            name, size = path.relative_to(folder).as_posix(), checkpoint.size_bytes(path)
            found.append(Checkpoint(path, name, size, metadata, problem, verify))
    return sorted(found, key=lambda one: () if one.metadata is None else one.metadata.place)


def _examine(path: Path, *, verify: bool) -> tuple[Metadata | None, str | None]:
    """What a file holds, and why it cannot be used."""
    metadata = None
    try:
        content = checkpoint.read_without_tensors(path)
        if not schema.is_weights(content):
            metadata = read_metadata(path)
        if verify:
            checkpoint.verify(path)
    except CheckpointError as error:
        return metadata, str(error)
    return metadata, None


def newest(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The one furthest in the run that can be used."""
    whole = [one for one in checkpoints if one.metadata is not None and one.problem is None]
    return whole[-1] if whole else None


def find_logs(folder: Path) -> dict[str, Curves]:
    """The logs of epochs in a folder and below it, by name."""
    found = {
        path.relative_to(folder).as_posix(): read_log(path)
        for path in _below(folder)
        if path.suffix in LOG_SUFFIXES
    }
    return {name: curves for name, curves in found.items() if curves is not None}


def _below(folder: Path) -> Iterator[Path]:
    """The files, without those in hidden folders."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts) or shards.is_inside(path)
        if path.is_file() and not is_hidden:
            yield path


def newest_metadata(path: Path) -> Metadata:
    """What a checkpoint holds, or the newest one in a folder and below it; no tensors are read.

    Raises:
        CheckpointError: there is none, or none that can be used.
    """
    if not path.is_dir():
        return read_metadata(path)
    checkpoints = find_checkpoints(path, verify=False)
    best = newest(checkpoints)
    if best is not None and best.metadata is not None:
        return best.metadata
    problems = [one.problem for one in checkpoints if one.problem is not None]
    if problems:
        raise DamagedCheckpointError(
            f"no checkpoint in {str(path)!r} can be used: {' '.join(problems)}"
        )
    raise CheckpointNotFoundError(
        f"there is no checkpoint in {str(path)!r}: pass the folder that the run saves to."
    )
