"""Metadata of a checkpoint, read without its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.checkpointing.format import schema
from fitkit.checkpointing.format.encoding import decode
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.core.errors import DamagedCheckpointError, as_checkpoint_error
from fitkit.core.html import table


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

    Attributes:
        path: the file.
        size_bytes: its size.
        format_version: version of the format.
        fitkit_version: the fitkit that wrote it.
        pytorch_version: the torch that wrote it.
        epoch: epochs done.
        batch: batches done in the unfinished epoch.
        global_step: training batches done over all epochs.
        position: its position in the run; later is greater.
        metrics: the values of the last logged epoch.
        callbacks: the state of each callback that has one, by its name.
        state: the whole content by the keys of the format, with tensors on the device ``"meta"``:
            shapes and types without values.
    """

    path: Path
    size_bytes: int
    format_version: int
    fitkit_version: str
    pytorch_version: str
    epoch: int
    batch: int
    global_step: int
    position: tuple[int, ...]
    metrics: Mapping[str, float]
    callbacks: Mapping[str, Any]
    state: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<checkpoint {str(self.path)!r}: {self._progress_text()}>"

    def _progress_text(self) -> str:
        batches = f" and {self.batch} batches" if self.batch else ""
        return f"{self.epoch} epochs{batches}, step {self.global_step}"

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        weights = self.state["model_state_dict"]
        shapes = [value for value in weights.values() if isinstance(value, Tensor)]
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

    What is read is verified by its checksums; ``verify`` checks the tensors as well.

    Raises:
        CheckpointError: the file cannot be used, or holds only weights.
    """
    path = Path(path)
    state = schema.validate(single_or_sharded.read_without_tensors(path), path)
    progress = state["progress"]["state"]
    with as_damaged_error(path):
        columns = decode(state["history"])["history"]
        metrics = {name: float(values[-1]) for name, values in columns.items() if len(values)}
        callbacks = {key: entry["state"] for key, entry in state["callback_states"].items()}
    return Metadata(
        path=path,
        size_bytes=single_or_sharded.size_bytes(path),
        format_version=state["format_version"],
        fitkit_version=state["fitkit_version"],
        pytorch_version=state["pytorch_version"],
        epoch=progress["epoch"],
        batch=progress["batch"],
        global_step=progress["global_step"],
        position=schema.run_position(state),
        metrics=metrics,
        callbacks=callbacks,
        state=state,
    )
