"""Which file of a folder a run goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitkit.checkpointing import files, schema, temporary
from fitkit.core.errors import CheckpointError


@dataclass
class Found:
    """The newest whole checkpoint, and what was passed over on the way to it.

    Attributes:
        path: the file, or ``None`` if there is none.
        place: its place in the run.
        passed_over: one sentence for each damaged file.
    """

    path: Path | None = None
    place: tuple[int, int, int, int] | None = None
    passed_over: list[str] = field(default_factory=list)


def newest(folders: Iterable[Path]) -> Found:
    """The full checkpoint furthest in the run that verifies, by its content, not by file times.

    Files of other kinds, and such with weights only, are not looked at further. Among files of one
    place the first by name is taken: they hold the same.
    """
    found = Found()
    for path in _candidates(folders):
        try:
            place = _place_of(path)
        except CheckpointError as error:
            found.passed_over.append(str(error))
            continue
        if place is not None and (found.place is None or place > found.place):
            found.path, found.place = path, place
    return found


def is_at(path: Path, place: tuple[int, int, int, int]) -> bool:
    """Whether ``path`` is a whole checkpoint that was made at ``place``."""
    try:
        return _place_of(path) == place
    except CheckpointError:
        return False


def _place_of(path: Path) -> tuple[int, int, int, int] | None:
    """The place of a full checkpoint; ``None`` for weights and other files that are whole."""
    state = files.read(path, mmap=True)
    return schema.place(schema.validate(state, path)) if schema.is_full(state) else None


def _candidates(folders: Iterable[Path]) -> list[Path]:
    paths: dict[Path, None] = {}
    for folder in folders:
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if _may_be_checkpoint(path):
                    paths[path.resolve()] = None
    return list(paths)


def _may_be_checkpoint(path: Path) -> bool:
    if path.name.endswith(temporary.SUFFIX) or not path.is_file():
        return False
    return path.suffix in (".pth", ".pt", ".ckpt") or files.is_checkpoint_like(path)


def read_full(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The verified and validated content of a full checkpoint.

    Raises:
        CheckpointError: it cannot be used; see ``files.read`` and ``schema.validate``.
    """
    return schema.validate(files.read(path, map_location=map_location), path)
