"""Reading: a whole handler, or weights for a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fitkit.checkpointing import checkpoint, schema
from fitkit.checkpointing.metadata import Metadata, read_metadata
from fitkit.checkpointing.plain import from_plain
from fitkit.core.errors import DamagedCheckpointError

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

__all__ = [
    "Metadata",
    "initialize_from_checkpoint",
    "load",
    "provide_handler_class",
    "read_metadata",
    "read_state",
    "read_weights",
]

# The facade stands above this module, so it introduces itself instead of being imported.
_handler_class: list[type[NNHandler]] = []


def provide_handler_class(handler_class: type[NNHandler]) -> None:
    """Say which class ``load`` and ``initialize_from_checkpoint`` build."""
    _handler_class[:] = [handler_class]


def load(path: str | Path, device: torch.device | str | None = None, **options: Any) -> NNHandler:
    """A handler as it was saved; see ``NNHandler.load`` for the options.

    Raises:
        CheckpointError: the file cannot be used.
    """
    return _handler_class[0].load(path, device, **options)


def initialize_from_checkpoint(
    checkpoint_path: str | Path, model_class: Any, **options: Any
) -> NNHandler:
    """A new handler with only the weights; see ``NNHandler.initialize_from_checkpoint``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    return _handler_class[0].initialize_from_checkpoint(checkpoint_path, model_class, **options)


def read_state(path: str | Path) -> dict[str, Any]:
    """The verified content of a full checkpoint, tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be used.
    """
    return schema.validate(checkpoint.read(Path(path)), path)


def read_weights(
    path: str | Path, *, averaged: bool = True, empty: checkpoint.Empty | None = None
) -> dict[str, Any]:
    """The model's weights in a full checkpoint, in a weights file, or in a bare state dict.

    They stay in the file until they are used: copy what must outlive a change of it.

    Args:
        path: the file.
        averaged: of a checkpoint with averaged weights (EMA), take those: they were scored.
        empty: as in ``checkpoint.read``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    state = checkpoint.read(Path(path), mmap=True, empty=empty)
    if schema.is_full(state):
        state = schema.validate(state, path)
        average = state["ema_state_dict"]
        weights = state["model_state_dict"]
        if averaged and average:  # it has no extra state of modules
            weights = {**weights, **_averaged_weights(average, path)}
    else:
        weights = state.get("model_state_dict", state) if isinstance(state, dict) else None
    if not schema.is_weights(weights):
        raise DamagedCheckpointError(
            f"{str(path)!r} holds no weights: expected a checkpoint of fitkit or a state dict of "
            f"tensors."
        )
    found: dict[str, Any] = from_plain(weights)
    return found


def _averaged_weights(average: dict[str, Any], path: str | Path) -> dict[str, Any]:
    weights = average.get("weights")
    if not isinstance(weights, dict):
        raise DamagedCheckpointError(f"the averaged weights in {str(path)!r} cannot be read.")
    return weights
