"""Find the checkpoint files below a folder, and group them by run."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fitkit.checkpointing.catalog import metadata as metadata_module
from fitkit.checkpointing.catalog.metadata import Metadata, as_damaged_error
from fitkit.checkpointing.storage.file_version import FileVersion
from fitkit.checkpointing.storage.is_checkpoint import may_be_checkpoint
from fitkit.checkpointing.storage.outline import read_outline
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError

FileId = tuple[int, int]


@dataclass(frozen=True)
class RunSignature:
    """What tells the checkpoints of one run from those of others."""

    kind: str  # model and seeds
    num_epochs: int  # in the history
    columns: Mapping[str, Sequence[Any]]  # of the history; equal where its values are the same bits

    def continues(self, earlier: RunSignature) -> bool:
        """Whether this can be of the same run as ``earlier``, at a later moment."""
        number = earlier.num_epochs
        return (
            self.kind == earlier.kind
            and self.num_epochs >= number
            and all(
                _begins(self.columns.get(name, []), values, number)
                for name, values in earlier.columns.items()
            )
        )


def _begins(later: Sequence[Any], earlier: Sequence[Any], number: int) -> bool:
    """Whether the first values of a column are all of an earlier one."""
    first = later[:number]  # arrays are compared at once, and never equal to lists
    return first == earlier or (type(first) is not type(earlier) and [*first] == [*earlier])


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
    # of a checkpoint: the path and the value that savers call their best, by the savers' keys
    saver_bests: Mapping[str, tuple[str, float]] = field(default_factory=dict)

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


def scan_folder(
    folder: Path,
    *,
    verify: bool = False,
    show_progress: Callable[[list[Path]], Iterable[Path]] = iter,
) -> list[CheckpointFile]:
    """Every file below ``folder`` that may be a checkpoint, by name.

    Links to folders are not followed. Files that are deleted meanwhile are left out.

    Args:
        folder: the folder.
        verify: check all checksums and look at the whole content of each file; otherwise the values
            of tensors, and all of the content that is not listed, are not looked at.
        show_progress: wraps the files, as ``tqdm`` does.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"there is no folder {str(folder)!r}: check the path.")
    paths = sorted(filter(may_be_checkpoint, folder.rglob("*")))
    by_id: dict[FileId, CheckpointFile] = {}
    found = (_scan(path, verify, by_id) for path in show_progress(paths))
    return [file for file in found if file is not None]


def _scan(path: Path, verify: bool, by_id: dict[FileId, CheckpointFile]) -> CheckpointFile | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    file_id = (status.st_dev, status.st_ino)
    if file_id in by_id:  # another name of a file that was scanned before
        return replace(by_id[file_id], path=path)
    file = CheckpointFile(path, "damaged", status.st_size, status.st_mtime, file_id)
    try:
        file = replace(file, **classify(path, verify=verify))
    except (CheckpointError, OSError) as error:
        if not path.exists():
            return None
        file = replace(file, problem=str(error))
    by_id[file_id] = file
    return file


def classify(path: Path, *, verify: bool) -> dict[str, Any]:
    """What a ``CheckpointFile`` says of the content of a file; raises if it cannot be used."""
    if verify:
        metadata_module.verify(path)
    version = FileVersion.of(path)
    outline = read_outline(path)
    size = metadata_module.size_bytes(path, outline)
    found: dict[str, Any] = {"kind": outline.kind, "size_bytes": size}
    if outline.kind == "checkpoint":
        found["metadata"] = metadata_module.metadata_of(outline, path, version)
        with as_damaged_error(path):
            found["signature"] = _signature(outline.state)
            found["saver_bests"] = dict(_find_saver_bests(outline.state))
    return found


def _signature(state: Mapping[str, Any]) -> RunSignature:
    history = state["history"]
    return RunSignature(
        kind=repr([state[key] for key in ("model_class", "seed", "data_seed")]),
        num_epochs=len(history["epoch"]),
        columns={name: _exactly(values) for name, values in history["history"].items()},
    )


def _exactly(values: Sequence[Any]) -> Sequence[Any]:
    """``values`` so that they are equal where they are exactly the same, which NaN is not."""
    if set(map(type, values)) == {float}:
        return array("q", array("d", values).tobytes())
    return [_exactly([it])[0] if type(it) is float else repr(it) for it in values]


def _find_saver_bests(state: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, float]]]:
    for key, entry in state["callback_states"].items():
        saved = entry["state"]
        path, value = map(saved.get, ("best_path", "best")) if type(saved) is dict else (None, None)
        if isinstance(path, str) and isinstance(value, float):
            yield key, (path, value)


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
    by_name: dict[str, list[CheckpointFile]] = defaultdict(list)
    for file in files:
        by_name[file.path.name].append(file)
    for run in runs:
        run.best = _find_best(run, by_name)
    return runs, ambiguous


def _is_of_run(file: CheckpointFile, run: RunFiles) -> bool:
    later, earlier = run.last.signature, file.signature
    return later is not None and earlier is not None and later.continues(earlier)


def _find_best(run: RunFiles, by_name: Mapping[str, list[CheckpointFile]]) -> set[FileId]:
    """The files that savers call their best.

    A saver writes its best score into the file itself, so an earlier run's file of that name in the
    same folder does not count.
    """
    best: set[FileId] = set()
    of_run = {file.path for file in run.files}
    for key, (path, value) in run.last.saver_bests.items():
        for file in by_name.get(PurePosixPath(path).name, ()):
            is_named = _ends_with(file.path, path)
            if not is_named or (file.path not in of_run and file.kind != "weights"):
                continue
            if file.kind == "weights" or file.saver_bests.get(key, (path, None))[1] == value:
                best.add(file.file_id)
    return best


def _ends_with(path: Path, name: str) -> bool:
    """Whether ``name``, which is relative to a saver's folder, can mean this file."""
    parts = PurePosixPath(name).parts
    return bool(parts) and path.parts[-len(parts) :] == parts
