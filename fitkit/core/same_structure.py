"""Checks that a value in a checkpoint has the structure that the program expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fitkit.core.errors import CheckpointError, describe


def require_same_structure(saved: Any, current: Any, where: str) -> None:
    """Raise ``CheckpointError`` unless ``saved`` has the structure of ``current``.

    Numbers match numbers, sequences match sequences, and mappings match mappings, item by item for
    the keys of both; ``None`` matches everything. ``where`` names the value in the message.
    """
    if current is None or saved is None:
        return
    if not _has_same_type(saved, current):
        raise CheckpointError(
            f"{where} in the checkpoint is {describe(saved)}, expected something like "
            f"{describe(current)}: the file was altered or is of another program, use another."
        )
    if isinstance(current, Mapping):
        for key in current.keys() & saved.keys():
            require_same_structure(saved[key], current[key], f"{where}[{key!r}]")
    elif isinstance(current, (list, tuple)) and current:
        for index, item in enumerate(saved):
            reference = current[min(index, len(current) - 1)]
            require_same_structure(item, reference, f"{where}[{index}]")


def _has_same_type(saved: Any, current: Any) -> bool:
    if isinstance(current, Mapping):
        return isinstance(saved, Mapping)
    if isinstance(current, (list, tuple)):
        return isinstance(saved, (list, tuple))
    if isinstance(current, (bool, int, float)) or (
        isinstance(current, Tensor) and not current.ndim
    ):
        return isinstance(saved, (int, float)) or (isinstance(saved, Tensor) and saved.numel() == 1)
    if isinstance(current, Tensor):
        return isinstance(saved, Tensor) and saved.shape == current.shape
    return isinstance(saved, str) or not isinstance(current, str)
