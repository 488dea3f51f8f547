"""Find the checkpoint in a folder from which a run resumes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage import run_record, single_or_sharded
from fitkit.checkpointing.storage.is_checkpoint import list_checkpoints
from fitkit.core.errors import CheckpointError
from fitkit.core.tree import map_tensors
from fitkit.distributed.world import World


@dataclass
class LatestCheckpoint:
    """The latest intact checkpoint, if there is one."""

    path: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)  # an error message for each damaged file
    weights_only: list[Path] = field(default_factory=list)  # files from which no run can resume


def find_latest(
    folders: Iterable[Path],
    empty: single_or_sharded.Empty | None = None,
    world: World | None = None,
    *,
    last_call: int | None = None,
) -> LatestCheckpoint:
    """Find the intact full checkpoint furthest on the line begun last, not by file times.

    A line is begun where a run starts, or goes back to an earlier file and on from there.

    Tensors are read and verified from the furthest file on, until one is intact. Files with weights
    only, and other files, are ignored. Of files at one position the first by name is taken: they
    hold the same. Every rank must find the file intact.

    Raises:
        CheckpointError: another rank sees other checkpoints.
    """
    world = world or World()
    found = LatestCheckpoint()
    candidates: list[tuple[int, tuple[int, ...], Path]] = []  # branch, position
    for path in list_checkpoints(folders):
        try:
            content = single_or_sharded.read_without_tensors(path)
            if schema.is_full(content):
                position = schema.run_position(schema.validate(content, path))
                record = run_record.read(path)
                branch = 0 if record is None else record.branch
                if last_call is None or position[0] <= last_call:
                    candidates.append((branch, position, path))
            elif schema.is_weights(content):
                found.weights_only.append(path)
        except CheckpointError as error:
            found.skipped.append(str(error))
    candidates.sort(key=lambda candidate: candidate[:2], reverse=True)
    _require_same_view([position for _, position, _ in candidates], world)
    for *_, path in candidates:
        state, problem = {}, None
        try:
            state = read_full(path, empty)
        except CheckpointError as error:
            problem = str(error)
        problems = [text for text in world.gather_all(problem) if text is not None]
        found.skipped += problems[:1]
        if not problems:
            found.path, found.state = path, state
            break
    return found


def _require_same_view(positions: list[tuple[int, ...]], world: World) -> None:
    """Raise if a rank does not see the checkpoints that rank 0 sees."""
    views = world.gather_all(positions)
    for rank, view in enumerate(views):
        if view != views[0]:
            own, first = ((seen[0] if seen else "no checkpoint") for seen in (view, views[0]))
            raise CheckpointError(
                f"rank {rank} would resume from {own}, rank 0 from {first}, out of {len(view)} and "
                f"{len(views[0])} checkpoints: keep checkpoints in a folder that all ranks see."
            )


def is_at_position(path: Path, position: tuple[int, int, int, int]) -> bool:
    """Whether ``path`` is an intact checkpoint that was made at ``position``."""
    try:
        single_or_sharded.verify(path)
        content = single_or_sharded.read_without_tensors(path)
        return schema.run_position(schema.validate(content, path)) == position
    except CheckpointError:
        return False


def read_full(path: Path, empty: single_or_sharded.Empty | None = None) -> dict[str, Any]:
    """The verified and validated content of a full checkpoint, to be loaded into a handler.

    Weights stay mapped to the file until they are copied into the model; the rest is in memory. See
    ``checkpoint.read`` for ``empty``, and ``schema.validate`` for errors.
    """
    state = schema.validate(single_or_sharded.read(path, mmap=True, empty=empty), path)
    return {
        key: value if key in schema.COPIED_KEYS else map_tensors(Tensor.clone, value)
        for key, value in state.items()
    }
