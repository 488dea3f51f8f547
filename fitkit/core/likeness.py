"""Whether a value from a checkpoint is of the kind that the program works with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fitkit.core.errors import CheckpointError


def require_like(found: Any, own: Any, where: str) -> None:
    """Fail unless ``found`` could be another value of what ``own`` is a value of.

    Numbers are like numbers, sequences like sequences, and mappings like mappings, down to what
    both have; ``None`` on either side says nothing.

    Raises:
        CheckpointError: it could not; the sentence names the place.
    """
    if own is None or found is None:
        return
    if isinstance(own, Mapping):
        _require(isinstance(found, Mapping), found, own, where)
        for key in own.keys() & found.keys():
            require_like(found[key], own[key], f"{where}[{key!r}]")
    elif isinstance(own, (list, tuple)):
        _require(isinstance(found, (list, tuple)), found, own, where)
        for number, item in enumerate(found):
            if own:
                require_like(item, own[min(number, len(own) - 1)], f"{where}[{number}]")
    elif isinstance(own, (bool, int, float)) or (isinstance(own, Tensor) and not own.ndim):
        fits = isinstance(found, (int, float)) or (isinstance(found, Tensor) and found.numel() == 1)
        _require(fits, found, own, where)
    elif isinstance(own, Tensor):
        _require(isinstance(found, Tensor) and found.shape == own.shape, found, own, where)
    elif isinstance(own, str):
        _require(isinstance(found, str), found, own, where)


def _require(fits: bool, found: Any, own: Any, where: str) -> None:
    if not fits:
        raise CheckpointError(
            f"{where} in the checkpoint is {_kind(found)}, expected something like {_kind(own)}: "
            f"the file was altered or is of another program, use another."
        )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
