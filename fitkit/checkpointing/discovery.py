"""Which file of a folder a run goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.checkpointing import checkpoint, files, schema, temporary
from fitkit.core.errors import CheckpointError
from fitkit.core.tree import map_tensors
from fitkit.runtime.world import World

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


def newest(
    folders: Iterable[Path], empty: checkpoint.Empty | None = None, world: World | None = None
) -> Found:
    """The full checkpoint furthest in the run that verifies, by its content, not by file times.

    Tensors are read, and their checksums verified, from the furthest file on, until one is whole.
    Files of other kinds, and such with weights only, are not looked at further. Among files of one
    place the first by name is taken: they hold the same.

    Args:
        folders: where to look.
        empty: as in ``checkpoint.read``.
        world: the processes, which all have to find it whole.

    Raises:
        CheckpointError: another process sees other checkpoints.
    """
    world = world or World()
    found = Found()
    places: list[tuple[tuple[int, ...], Path]] = []
    for path in _candidates(folders):
        try:
            content = checkpoint.read_without_tensors(path)
            if schema.is_full(content):
                places.append((schema.place(schema.validate(content, path)), path))
        except CheckpointError as error:
            found.passed_over.append(str(error))
    places.sort(key=lambda entry: entry[0], reverse=True)
    _require_same_view([place for place, _ in places], world)
    for _, path in places:
        state, problem = {}, None
        try:
            state = read_full(path, empty)
        except CheckpointError as error:
            problem = str(error)
        problems = [one for one in world.gather_all(problem) if one is not None]
        found.passed_over += problems[:1]
        if not problems:
            found.path, found.state = path, state
            break
    return found


def _require_same_view(places: list[tuple[int, ...]], world: World) -> None:
    """Fail if a process does not see the checkpoints that the main one does."""
    views = world.gather_all(places)
    for rank, view in enumerate(views):
        if view != views[0]:
            own, main = ((one[0] if one else "no checkpoint") for one in (view, views[0]))
            raise CheckpointError(
                f"rank {rank} would resume from {own}, the main process from {main}, out of "
                f"{len(view)} and {len(views[0])} checkpoints: keep checkpoints in a folder that "
                f"all processes see."
            )


def is_at(path: Path, place: tuple[int, int, int, int]) -> bool:
    """Whether ``path`` is a whole checkpoint that was made at ``place``."""
    try:
        checkpoint.verify(path)
        content = checkpoint.read_without_tensors(path)
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


def read_full(path: Path, empty: checkpoint.Empty | None = None) -> dict[str, Any]:
    """The verified and validated content of a full checkpoint, for a handler to take over.

    The weights stay in the file until they are copied into the model; everything else is in memory.

    Args:
        path: the file.
        empty: as in ``checkpoint.read``.

    Raises:
        CheckpointError: it cannot be used; see ``archive.read`` and ``schema.validate``.
    """
    state = schema.validate(checkpoint.read(path, mmap=True, empty=empty), path)
    return {
        key: value if key in _COPIED_BY_THEIR_OWNERS else map_tensors(Tensor.clone, value)
        for key, value in state.items()
    }
