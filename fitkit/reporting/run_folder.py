"""The checkpoints and log files in the folder of a run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from fitkit.checkpointing.catalog.metadata import Metadata, read_metadata
from fitkit.checkpointing.catalog.scan import CheckpointFile, scan_folder
from fitkit.checkpointing.storage.is_checkpoint import CHECKPOINT_SUFFIXES
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError, DamagedCheckpointError
from fitkit.reporting.curve_data import Curves
from fitkit.reporting.log_files import read_log

_LOG_SUFFIXES = (".csv", ".jsonl")


def find_checkpoints(folder: Path, *, verify: bool) -> list[CheckpointFile]:
    """The checkpoints in a folder and below it, by their position in the run.

    Files with the suffix of a checkpoint that are damaged, or hold only weights, are among them.

    Args:
        folder: the folder.
        verify: also check the checksums of all tensors, which reads every file completely.
    """
    files = [
        _with_metadata(file)
        for file in scan_folder(folder, verify=verify)
        if file.metadata is not None or file.path.suffix in CHECKPOINT_SUFFIXES
        if not _is_hidden(file.path, folder)
    ]
    return sorted(files, key=lambda file: file.position)


def _with_metadata(file: CheckpointFile) -> CheckpointFile:
    if file.metadata is None:
        with suppress(CheckpointError):  # where only tensors are damaged, the rest can be read
            return replace(file, metadata=read_metadata(file.path))
    return file


def newest_usable(files: list[CheckpointFile]) -> CheckpointFile | None:
    """The checkpoint furthest in the run that is not damaged, and whose whole content is valid."""
    for file in reversed(files):
        if file.metadata is not None and file.problem is None:
            with suppress(CheckpointError):
                if file.metadata.state:
                    return file
    return None


def find_logs(folder: Path) -> dict[str, Curves]:
    """The logs of epochs in a folder and below it, by name."""
    logs = {
        path.relative_to(folder).as_posix(): read_log(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _LOG_SUFFIXES and path.is_file() and not _is_hidden(path, folder)
    }
    return {name: curves for name, curves in logs.items() if curves is not None}


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def newest_metadata(path: Path) -> Metadata:
    """The metadata of a checkpoint, or of the newest one in a folder and below it.

    Raises:
        CheckpointError: there is none, or none that can be used.
    """
    if not path.is_dir():
        return read_metadata(path)
    files = find_checkpoints(path, verify=False)
    newest = newest_usable(files)
    if newest is not None and newest.metadata is not None:
        return newest.metadata
    problems = [file.problem for file in files if file.problem is not None]
    if problems:
        raise DamagedCheckpointError(
            f"no checkpoint in {str(path)!r} can be used: {' '.join(problems)}"
        )
    raise CheckpointNotFoundError(
        f"there is no checkpoint in {str(path)!r}: pass the folder that the run saves to."
    )
