"""What lies in a run's folder: checkpoints, each with its condition, and logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fitkit.checkpointing.catalogue import SUFFIXES, Entry, catalogue
from fitkit.checkpointing.metadata import Metadata, read_metadata
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from fitkit.reporting.curves import Curves
from fitkit.reporting.logs import read_log

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
    found = [
        _checkpoint(entry, folder, verify=verify)
        for entry in catalogue(folder, verify=verify)
        if entry.metadata is not None or entry.path.suffix in SUFFIXES
        if not _is_hidden(entry.path, folder)
    ]
    return sorted(found, key=lambda one: () if one.metadata is None else one.metadata.place)


def _checkpoint(entry: Entry, folder: Path, *, verify: bool) -> Checkpoint:
    metadata = entry.metadata
    if metadata is None:
        with suppress(CheckpointError):  # tensors that are damaged leave the rest to be told
            metadata = read_metadata(entry.path)
    name = entry.path.relative_to(folder).as_posix()
    return Checkpoint(entry.path, name, entry.size_bytes, metadata, entry.problem, verify)


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
        if path.is_file() and not _is_hidden(path, folder):
            yield path


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


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
