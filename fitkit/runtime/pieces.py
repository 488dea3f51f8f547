"""Pieces: tensors of which each process holds a part.

torch's own (``DTensor``) take a second to import, so nothing here does before there is one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def is_piece(value: Any) -> bool:
    """Whether ``value`` is a tensor that lies spread over the processes."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def here(tensor: Tensor) -> Tensor:
    """What of ``tensor`` is on this process: all of it, unless it is a piece."""
    piece: Any = tensor
    local: Tensor = piece.to_local() if is_piece(tensor) else tensor
    return local


@torch.no_grad()
def fitted(value: Tensor, own: Any) -> Tensor:
    """``value`` spread over the processes as ``own`` is, so that one can be copied to the other."""
    if is_piece(value) == is_piece(own) or value.shape != own.shape:
        return value
    if is_piece(value):
        piece: Any = value
        whole: Tensor = piece.full_tensor()
        return whole
    from torch.distributed.tensor import distribute_tensor  # a second of imports

    moved = value.to(own.device)
    return distribute_tensor(moved, own.device_mesh, own.placements, src_data_rank=None)


def fitted_all(values: Any, own: Any) -> Any:
    """A dict of tensors, each spread as the one of the same name in ``own`` is."""
    result = copy.copy(values)  # with the versions that a module's state dict carries
    for name, value in values.items():
        if isinstance(value, Tensor) and isinstance(own.get(name), Tensor):
            result[name] = fitted(value, own[name])
    return result
