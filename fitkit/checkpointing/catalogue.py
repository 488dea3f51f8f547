"""The checkpoints below a folder, and which of them are of one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fitkit.checkpointing import checkpoint, schema, shards, temporary
from fitkit.checkpointing.metadata import Metadata, read_metadata
from fitkit.checkpointing.overview import told_as_damage
from fitkit.checkpointing.plain import from_plain
from fitkit.core.errors import CheckpointError, CheckpointNotFoundError

SUFFIXES = (".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Lineage:
    """What tells a run from others.

    Attributes:
        kind: model and seeds.
        num_epochs: epochs in the history.
        columns: its values, as exact texts.
    """

    kind: str
    num_epochs: int
    columns: Mapping[str, list[str]]

    def continues(self, earlier: Lineage) -> bool:
        """Whether this can be a later moment of the same run."""
        number = earlier.num_epochs
        return (
            self.kind == earlier.kind
            and self.num_epochs >= number
            and all(self.columns.get(k, [])[:number] == v for k, v in earlier.columns.items())
        )


@dataclass(frozen=True)
class Entry:
    """A file below a folder.

    Attributes:
        path: where it is.
        kind: ``"checkpoint"``, ``"weights"``, ``"other"`` (e.g. a part of a checkpoint) or
            ``"damaged"``.
        size_bytes: its size.
        modified: when it was written, in seconds since 1970.
        file_id: equal for names of one file.
        problem: of a damaged one, the sentence that says so.
        metadata: of a checkpoint.
        lineage: of a checkpoint, what tells its run from others.
    """

    path: Path
    kind: str
    size_bytes: int
    modified: float
    file_id: tuple[int, int]
    problem: str | None = None
    metadata: Metadata | None = None
    lineage: Lineage | None = None

    @property
    def place(self) -> tuple[int, ...]:
        """The place in the run; empty where it is not known."""
        return () if self.metadata is None else self.metadata.place


@dataclass
class Run:
    """The checkpoints of one run.

    Attributes:
        entries: its checkpoints, the furthest in the run first.
        best: the files (their ``file_id``) that the savers of the furthest call their best.
    """

    entries: list[Entry] = field(default_factory=list)
    best: set[tuple[int, int]] = field(default_factory=set)

    @property
    def last(self) -> Entry:
        """The checkpoint furthest in the run."""
        return self.entries[0]


def catalogue(folder: Path, *, verify: bool = False) -> list[Entry]:
    """Every file below ``folder`` that ``torch.save`` wrote, by name.

    Links to folders are not followed, and files of writes under way are left out.

    Args:
        folder: where to look.
        verify: check all checksums; otherwise only those of what is not a tensor's values.

    Raises:
        CheckpointNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(f"there is no folder {str(folder)!r}: check the path.")
    paths = sorted(path for path in folder.rglob("*") if _may_be_saved(path))
    checked: dict[tuple[int, int], Entry] = {}
    return [_entry(path, verify, checked) for path in paths]


def _may_be_saved(path: Path) -> bool:
    if path.name.endswith(temporary.SUFFIX) or not path.is_file() or shards.is_inside(path):
        return False
    return path.suffix in SUFFIXES or _begins_like_saved(path)


def _begins_like_saved(path: Path) -> bool:
    """Whether its first record is that of ``torch.save``; other zip files are none of ours."""
    try:
        with path.open("rb") as file:
            header = file.read(30)
            name = file.read(int.from_bytes(header[26:28], "little"))
    except OSError:
        return False
    return header[:4] == b"PK\x03\x04" and name.endswith(b"/data.pkl")


def _entry(path: Path, verify: bool, checked: dict[tuple[int, int], Entry]) -> Entry:
    status = path.stat()
    about: dict[str, Any] = {
        "path": path,
        "size_bytes": checkpoint.size_bytes(path),
        "modified": status.st_mtime,
        "file_id": (status.st_dev, status.st_ino),
    }
    known = checked.get(about["file_id"])
    if known is not None:  # another name of a file that was looked at
        return replace(known, path=path)
    try:
        kind, metadata = look_at(path, verify=verify)
        lineage = None if metadata is None else _lineage(metadata)
        found = Entry(**about, kind=kind, metadata=metadata, lineage=lineage)
    except (CheckpointError, OSError) as error:
        found = Entry(**about, kind="damaged", problem=str(error))
    checked[about["file_id"]] = found
    return found


def look_at(path: Path, *, verify: bool) -> tuple[str, Metadata | None]:
    """The kind of a file, and the metadata of a full checkpoint.

    Args:
        path: the file.
        verify: also check the checksums of the tensors' values.

    Raises:
        CheckpointError: it is damaged, or of a version that cannot be read.
    """
    if verify:
        checkpoint.verify(path)
    content = checkpoint.read_without_tensors(path)
    if schema.is_full(content):
        with told_as_damage(path):
            return "checkpoint", read_metadata(path)
    return ("weights" if schema.is_weights(content) else "other"), None


# ---- runs ---------------------------------------------------------------------------------------


def runs_of(entries: Iterable[Entry]) -> tuple[list[Run], list[Entry]]:
    """The checkpoints sorted into their runs, and those that fit more than one.

    Two checkpoints are of one run if model and seeds are the same and the history of the later one
    begins with that of the earlier one.
    """
    entries = list(entries)
    runs: list[Run] = []
    unclear: list[Entry] = []
    placed = [one for one in entries if one.place]
    for one in sorted(placed, key=lambda one: (one.place, one.path), reverse=True):
        fitting = [run for run in runs if _is_of(one, run)]
        if len(fitting) > 1:
            unclear.append(one)
        elif fitting:
            fitting[0].entries.append(one)
        else:
            runs.append(Run([one]))
    for run in runs:
        run.best = _best(run, entries)
    return runs, unclear


def _is_of(entry: Entry, run: Run) -> bool:
    later, earlier = run.last.lineage, entry.lineage
    return later is not None and earlier is not None and later.continues(earlier)


def _lineage(found: Metadata) -> Lineage:
    with told_as_damage(found.path):
        history = from_plain(found.state["history"])
        return Lineage(
            kind=repr([found.state[name] for name in ("model_class", "seed", "data_seed")]),
            num_epochs=len(history["epoch"]),
            columns={name: list(map(repr, values)) for name, values in history["history"].items()},
        )


def _best(run: Run, entries: Iterable[Entry]) -> set[tuple[int, int]]:
    """The files that savers call their best.

    A saver writes its best score into the file itself, so a file of that name which was made
    before, by an earlier run in the same folder, does not count.
    """
    found: set[tuple[int, int]] = set()
    mine = {one.path for one in run.entries}
    for key, state in _saver_states(run.last):
        for one in entries:
            is_named = _ends_with(one.path, state["best_path"])
            if not is_named or (one.path not in mine and one.kind != "weights"):
                continue
            own = dict(_saver_states(one)).get(key, {})
            if one.kind == "weights" or own.get("best") == state["best"]:
                found.add(one.file_id)
    return found


def _saver_states(entry: Entry) -> Iterator[tuple[str, Mapping[str, Any]]]:
    callbacks = {} if entry.metadata is None else entry.metadata.callbacks
    for key, state in callbacks.items():
        is_saver = isinstance(state, Mapping) and isinstance(state.get("best_path"), str)
        if is_saver and isinstance(state.get("best"), float):
            yield key, state


def _ends_with(path: Path, name: str) -> bool:
    """Whether a name that is relative to a saver's folder can mean this file."""
    parts = PurePosixPath(name).parts
    return bool(parts) and path.parts[-len(parts) :] == parts
