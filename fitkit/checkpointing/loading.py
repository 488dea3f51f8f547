"""Load a handler from a checkpoint, or initialize a new one with a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fitkit.checkpointing.catalog.metadata import Metadata, read_metadata
from fitkit.checkpointing.read_weights import read_state, read_weights

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

__all__ = [
    "Metadata",
    "initialize_from_checkpoint",
    "load",
    "read_metadata",
    "read_state",
    "read_weights",
]

# This module is the only one that imports upward: ``NNHandler.load`` belongs to the class, and the
# seed documents also call it as a function of this module. Nothing below NNHandler imports it.


def load(path: str | Path, device: torch.device | str | None = None, **options: Any) -> NNHandler:
    """Load a handler from a full checkpoint; see ``NNHandler.load`` for the options.

    Raises:
        CheckpointError: the file cannot be used.
    """
    from fitkit.nn_handler import NNHandler

    return NNHandler.load(path, device, **options)


def initialize_from_checkpoint(
    checkpoint_path: str | Path, model_class: Any, **options: Any
) -> NNHandler:
    """Make a new handler with only the weights; see ``NNHandler.initialize_from_checkpoint``.

    Raises:
        CheckpointError: the file cannot be used.
    """
    from fitkit.nn_handler import NNHandler

    return NNHandler.initialize_from_checkpoint(checkpoint_path, model_class, **options)
