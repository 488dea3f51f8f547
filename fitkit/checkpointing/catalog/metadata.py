"""Metadata of a checkpoint, read without its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.storage.file_version import FileVersion
from fitkit.checkpointing.storage.outline import Outline, read_outline
from fitkit.core.errors import CheckpointError, DamagedCheckpointError, as_checkpoint_error
from fitkit.core.html import table
from fitkit.core.is_tensor import is_tensor


def as_damaged_error(path: Path) -> AbstractContextManager[None]:
    """Raise errors of looking at a file's content as ``DamagedCheckpointError``."""
    return as_checkpoint_error(
        f"the content of {str(path)!r} is not valid",
        "Use an earlier checkpoint.",
        kind=DamagedCheckpointError,
    )


@dataclass(frozen=True, repr=False)
class Metadata:
    """Metadata of a full checkpoint.

    The states of callbacks and the rest of the content are read from the file when they are first
    asked for, which raises ``CheckpointError`` if it was replaced meanwhile or cannot be used.

    Attributes:
        path: the file.
        size_bytes: its size.
        format_version: version of the format.
        fitkit_version: the fitkit that wrote it.
        pytorch_version: the torch that wrote it.
        epoch: epochs done.
        batch: batches done in the unfinished epoch.
        global_step: training batches done over all epochs.
        phase: what the loop does next in the epoch.
        position: its position in the run; later is greater.
        metrics: the values of the last logged epoch.
        version: tells the file from a later one of its name.
    """

    path: Path
    size_bytes: int
    format_version: int
    fitkit_version: str
    pytorch_version: str
    epoch: int
    batch: int
    global_step: int
    phase: str
    position: tuple[int, ...]
    metrics: Mapping[str, float]
    version: FileVersion | None

    @cached_property
    def state(self) -> Mapping[str, Any]:
        """The whole content by the keys of the format, validated.

        Tensors are on the device ``"meta"``: shapes and types without values.
        """
        state = read_state(self.path)
        if FileVersion.of(self.path) != self.version:
            raise CheckpointError(
                f"{str(self.path)!r} was replaced after its metadata was read: read it again."
            )
        return state

    @cached_property
    def callbacks(self) -> Mapping[str, Any]:
        """The state of each callback that has one, by its name."""
        with as_damaged_error(self.path):
            return {key: entry["state"] for key, entry in self.state["callback_states"].items()}

    def __repr__(self) -> str:
        return f"<checkpoint {str(self.path)!r}: {self._progress_text()}>"

    def _progress_text(self) -> str:
        batches = f" and {self.batch} batches" if self.batch else ""
        return f"{self.epoch} epochs{batches}, step {self.global_step}"

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        weights = self.state["model_state_dict"]
        shapes = [value for value in weights.values() if is_tensor(value)]
        facts = {
            "file": f"{self.path} ({self.size_bytes:,} bytes)",
            "model": self.state["model_class"] or "a ready module",
            "weights": f"{sum(one.numel() for one in shapes):,} numbers in {len(shapes)} tensors",
            "optimizer": self.state["optimizer_class"] or "none",
            "trained": self._progress_text(),
            "last values": ", ".join(f"{k}={v:.6g}" for k, v in self.metrics.items()) or "none",
            "callbacks": ", ".join(map(str, self.callbacks)) or "none",
            "written by": f"fitkit {self.fitkit_version}, torch {self.pytorch_version}, "
            f"format {self.format_version}",
        }
        return table(list(facts.items()))


def read_metadata(path: str | Path) -> Metadata:
    """Read the metadata of a full checkpoint, in milliseconds at any size: tensors are not read.

    Of the content only what is read is looked at, and all but the values of tensors is verified by
    its checksum; ``Metadata.state`` looks at all of it, and ``verify`` checks the tensors as well.

    Raises:
        CheckpointError: the file cannot be used, or holds only weights.
    """
    path = Path(path)
    version = FileVersion.of(path)
    outline = read_outline(path)
    if outline.kind != "checkpoint":
        read_state(path)  # says what it is instead
    return metadata_of(outline, path, version)


def metadata_of(outline: Outline, path: Path, version: FileVersion | None) -> Metadata:
    """The metadata in the outline of a full checkpoint.

    Raises:
        CheckpointError: it is of a newer format, or not valid.
    """
    state = outline.state
    schema.validate_keys(state, path, schema.LISTED_KEYS)
    position = schema.run_position(state)
    progress = state["progress"]["state"]
    with as_damaged_error(path):
        columns = state["history"]["history"]
        metrics = {name: float(values[-1]) for name, values in columns.items() if len(values)}
        for entry in state["callback_states"].values():
            entry["state"]
    return Metadata(
        path=path,
        size_bytes=size_bytes(path, outline),
        format_version=state["format_version"],
        fitkit_version=state["fitkit_version"],
        pytorch_version=state["pytorch_version"],
        epoch=progress["epoch"],
        batch=progress["batch"],
        global_step=progress["global_step"],
        phase=progress["phase"],
        position=position,
        metrics=metrics,
        version=version,
    )


# ---- what needs torch ---------------------------------------------------------------------------


def _storage() -> ModuleType:
    """The module that reads a whole checkpoint; it imports torch, which takes a second."""
    from fitkit.checkpointing.storage import single_or_sharded

    return single_or_sharded


def read_state(path: Path) -> dict[str, Any]:
    """The validated content of a full checkpoint with tensors on the device ``"meta"``.

    Raises:
        CheckpointError: the file cannot be used, or holds only weights.
    """
    return schema.validate(_storage().read_without_tensors(path), path)


def verify(path: Path) -> None:
    """Check every checksum, and look at the whole content.

    Raises:
        CheckpointError: the file cannot be used.
    """
    _storage().verify(path)
    content = _storage().read_without_tensors(path)
    if schema.is_full(content):
        schema.validate(content, path)


def size_bytes(path: Path, outline: Outline) -> int:
    """The size of the file and of its shards, if they are found."""
    size: int = _storage().size_bytes(path) if outline.is_sharded else path.stat().st_size
    return size
