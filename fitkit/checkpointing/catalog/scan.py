"""Find the checkpoint files below a folder, and group them by run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fitkit.checkpointing.catalog.metadata import Metadata, as_damaged_error, read_metadata
from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.checkpointing.storage.is_checkpoint import may_be_checkpoint
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError

FileId = tuple[int, int]


@dataclass(frozen=True)
class RunSignature:
    """What tells the checkpoints of one run from those of others."""

    kind: str  # model and seeds
    num_epochs: int  # in the history
    columns: Mapping[str, list[str]]  # of the history, as exact texts

    def continues(self, earlier: RunSignature) -> bool:
        """Whether this can be of the same run as ``earlier``, at a later moment."""
        number = earlier.num_epochs
        return (
            self.kind == earlier.kind
            and self.num_epochs >= number
            and all(self.columns.get(k, [])[:number] == v for k, v in earlier.columns.items())
        )


@dataclass(frozen=True)
class CheckpointFile:
    """A file that ``torch.save`` wrote, or that has a checkpoint's suffix."""

    path: Path
    kind: str  # "checkpoint", "weights", "other" (e.g. a part of a checkpoint) or "damaged"
    size_bytes: int
    modified: float  # seconds since 1970
    file_id: FileId  # equal for all names of one file
    problem: str | None = None  # the error message, if the file is damaged
    metadata: Metadata | None = None  # of a checkpoint
    signature: RunSignature | None = None  # of a checkpoint

    @property
    def position(self) -> tuple[int, ...]:
        """The position in the run; empty where it is not known."""
        return () if self.metadata is None else self.metadata.position


@dataclass
class RunFiles:
    """The checkpoints of one run."""

    files: list[CheckpointFile] = field(default_factory=list)  # the furthest in the run first
    best: set[FileId] = field(default_factory=set)  # what a saver of the furthest calls its best

    @property
    def last(self) -> CheckpointFile:
        """The checkpoint furthest in the run."""
        return self.files[0]


def scan_folder(folder: Path, *, verify: bool = False) -> list[CheckpointFile]:
    """Every file below ``folder`` that may be a checkpoint, by name.

    Links to folders are not followed. ``verify`` checks all checksums, otherwise those of tensors'
    values are not checked.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"there is no folder {str(folder)!r}: check the path.")
    paths = sorted(filter(may_be_checkpoint, folder.rglob("*")))
    by_id: dict[FileId, CheckpointFile] = {}
    return [_scan(path, verify, by_id) for path in paths]


def _scan(path: Path, verify: bool, by_id: dict[FileId, CheckpointFile]) -> CheckpointFile:
    status = path.stat()
    file_id = (status.st_dev, status.st_ino)
    if file_id in by_id:  # another name of a file that was scanned before
        return replace(by_id[file_id], path=path)
    size = single_or_sharded.size_bytes(path)
    file = CheckpointFile(path, "damaged", size, status.st_mtime, file_id)
    try:
        kind, metadata = classify(path, verify=verify)
        signature = None if metadata is None else _signature(metadata)
        file = replace(file, kind=kind, metadata=metadata, signature=signature)
    except (CheckpointError, OSError) as error:
        file = replace(file, problem=str(error))
    by_id[file_id] = file
    return file


def classify(path: Path, *, verify: bool) -> tuple[str, Metadata | None]:
    """The kind of a file, and the metadata of a full checkpoint; raises if it cannot be used."""
    if verify:
        single_or_sharded.verify(path)
    content = single_or_sharded.read_without_tensors(path)
    if schema.is_full(content):
        with as_damaged_error(path):
            return "checkpoint", read_metadata(path)
    return ("weights" if schema.is_weights(content) else "other"), None


# ---- runs ---------------------------------------------------------------------------------------


def group_runs(files: Iterable[CheckpointFile]) -> tuple[list[RunFiles], list[CheckpointFile]]:
    """The checkpoints by run, and those that fit more than one run.

    Two checkpoints are of one run if model and seeds are the same and the history of the later one
    begins with that of the earlier one.
    """
    files = list(files)
    runs: list[RunFiles] = []
    ambiguous: list[CheckpointFile] = []
    checkpoints = [file for file in files if file.position]
    for file in sorted(checkpoints, key=lambda file: (file.position, file.path), reverse=True):
        matching = [run for run in runs if _is_of_run(file, run)]
        if len(matching) > 1:
            ambiguous.append(file)
        elif matching:
            matching[0].files.append(file)
        else:
            runs.append(RunFiles([file]))
    for run in runs:
        run.best = _find_best(run, files)
    return runs, ambiguous


def _is_of_run(file: CheckpointFile, run: RunFiles) -> bool:
    later, earlier = run.last.signature, file.signature
    return later is not None and earlier is not None and later.continues(earlier)


def _signature(metadata: Metadata) -> RunSignature:
    with as_damaged_error(metadata.path):
        history = decode(metadata.state["history"])
        return RunSignature(
            kind=repr([metadata.state[key] for key in ("model_class", "seed", "data_seed")]),
            num_epochs=len(history["epoch"]),
            columns={name: list(map(repr, values)) for name, values in history["history"].items()},
        )


def _find_best(run: RunFiles, files: Iterable[CheckpointFile]) -> set[FileId]:
    """The files that savers call their best.

    A saver writes its best score into the file itself, so an earlier run's file of that name in the
    same folder does not count.
    """
    best: set[FileId] = set()
    of_run = {file.path for file in run.files}
    for key, state in _saver_states(run.last):
        for file in files:
            is_named = _ends_with(file.path, state["best_path"])
            if not is_named or (file.path not in of_run and file.kind != "weights"):
                continue
            own_state = dict(_saver_states(file)).get(key, {})
            if file.kind == "weights" or own_state.get("best") == state["best"]:
                best.add(file.file_id)
    return best


def _saver_states(file: CheckpointFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    callbacks = {} if file.metadata is None else file.metadata.callbacks
    for key, state in callbacks.items():
        is_saver = isinstance(state, Mapping) and isinstance(state.get("best_path"), str)
        if is_saver and isinstance(state.get("best"), float):
            yield key, state


def _ends_with(path: Path, name: str) -> bool:
    """Whether ``name``, which is relative to a saver's folder, can mean this file."""
    parts = PurePosixPath(name).parts
    return bool(parts) and path.parts[-len(parts) :] == parts
