"""Which file of a folder a run goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.checkpointing import archive, files, schema, temporary
from fitkit.core.errors import CheckpointError
from fitkit.core.tree import map_tensors

_COPIED_BY_THEIR_OWNERS = ("model_state_dict", "ema_state_dict")


@dataclass
class Found:
    """The newest whole checkpoint, and what was passed over on the way to it.

    Attributes:
        path: the file, or ``None`` if there is none.
        state: its content.
        passed_over: one sentence for each damaged file.
    """

    path: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


def newest(folders: Iterable[Path]) -> Found:
    """The full checkpoint furthest in the run that verifies, by its content, not by file times.

    Tensors are read, and their checksums verified, from the furthest file on, until one is whole.
    Files of other kinds, and such with weights only, are not looked at further. Among files of one
    place the first by name is taken: they hold the same.
    """
    found = Found()
    places: list[tuple[tuple[int, ...], Path]] = []
    for path in _candidates(folders):
        try:
            content = archive.read_without_tensors(path)
            if schema.is_full(content):
                places.append((schema.place(schema.validate(content, path)), path))
        except CheckpointError as error:
            found.passed_over.append(str(error))
    for _, path in sorted(places, key=lambda entry: entry[0], reverse=True):
        try:
            found.state = read_full(path)
        except CheckpointError as error:
            found.passed_over.append(str(error))
        else:
            found.path = path
            break
    return found


def is_at(path: Path, place: tuple[int, int, int, int]) -> bool:
    """Whether ``path`` is a whole checkpoint that was made at ``place``."""
    try:
        archive.verify(path)
        content = archive.read_without_tensors(path)
        return schema.is_full(content) and schema.place(schema.validate(content, path)) == place
    except CheckpointError:
        return False


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


def read_full(path: Path) -> dict[str, Any]:
    """The verified and validated content of a full checkpoint, for a handler to take over.

    The weights stay in the file until they are copied into the model; everything else is in memory.

    Raises:
        CheckpointError: it cannot be used; see ``archive.read`` and ``schema.validate``.
    """
    state = schema.validate(archive.read(path, mmap=True), path)
    return {
        key: value if key in _COPIED_BY_THEIR_OWNERS else map_tensors(Tensor.clone, value)
        for key, value in state.items()
    }
