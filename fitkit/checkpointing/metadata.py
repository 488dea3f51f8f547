"""Metadata: what a checkpoint is, told without reading its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fitkit.checkpointing import checkpoint, schema
from fitkit.checkpointing.plain import from_plain
from fitkit.core.errors import CheckpointError
from fitkit.core.html import table


@dataclass(frozen=True, repr=False)
class Metadata:
    """What a full checkpoint is.

    Attributes:
        path: the file.
        size_bytes: its size.
        format_version: version of the format.
        fitkit_version: the fitkit that wrote it.
        pytorch_version: the torch that wrote it.
        epoch: epochs done.
        batch: batches done in the epoch under way.
        global_step: training batches done over all epochs.
        place: its place in the run; later is greater.
        metrics: the values of the last epoch that was logged.
        callbacks: the state of each callback that has one, by its name.
        state: the whole content by the keys of the format, tensors on the device ``"meta"``: their
            shapes and types without their values.
    """

    path: Path
    size_bytes: int
    format_version: int
    fitkit_version: str
    pytorch_version: str
    epoch: int
    batch: int
    global_step: int
    place: tuple[int, ...]
    metrics: Mapping[str, float]
    callbacks: Mapping[str, Any]
    state: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<checkpoint {str(self.path)!r}: {self._where()}>"

    def _where(self) -> str:
        inside = f" and {self.batch} batches" if self.batch else ""
        return f"{self.epoch} epochs{inside}, step {self.global_step}"

    def _repr_html_(self) -> str:
        """What it is, for a notebook."""
        weights = self.state["model_state_dict"]
        shapes = [value for value in weights.values() if isinstance(value, Tensor)]
        facts = {
            "file": f"{self.path} ({self.size_bytes:,} bytes)",
            "model": self.state["model_class"] or "a ready module",
            "weights": f"{sum(one.numel() for one in shapes):,} numbers in {len(shapes)} tensors",
            "optimizer": self.state["optimizer_class"] or "none",
            "trained": self._where(),
            "last values": ", ".join(f"{k}={v:.6g}" for k, v in self.metrics.items()) or "none",
            "callbacks": ", ".join(map(str, self.callbacks)) or "none",
            "written by": f"fitkit {self.fitkit_version}, torch {self.pytorch_version}, "
            f"format {self.format_version}",
        }
        return table(list(facts.items()))


def read_metadata(path: str | Path) -> Metadata:
    """What a full checkpoint is, in milliseconds at any size: its tensors are not read.

    What is read is verified by its checksums; ``verify`` checks the tensors as well.

    Raises:
        CheckpointError: the file cannot be used, or holds only weights.
    """
    path = Path(path)
    state = schema.validate(checkpoint.read_without_tensors(path), path)
    progress = state["progress"]["state"]
    return Metadata(
        path=path,
        size_bytes=checkpoint.size_bytes(path),
        format_version=state["format_version"],
        fitkit_version=state["fitkit_version"],
        pytorch_version=state["pytorch_version"],
        epoch=progress["epoch"],
        batch=progress["batch"],
        global_step=progress["global_step"],
        place=schema.place(state),
        metrics=_last_values(state, path),
        callbacks=_callbacks(state, path),
        state=state,
    )


def _last_values(state: Mapping[str, Any], path: Path) -> dict[str, float]:
    try:
        columns = from_plain(state["history"])["history"]
        return {name: float(values[-1]) for name, values in columns.items() if len(values)}
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the history in {str(path)!r} cannot be read: {error!r}.") from error


def _callbacks(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    try:
        return {key: entry["state"] for key, entry in state["callback_states"].items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"the callbacks' states in {str(path)!r} cannot be read: {error!r}."
        ) from error
