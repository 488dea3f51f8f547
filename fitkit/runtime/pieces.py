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


def piece_around(local: Tensor, like: Any, mesh: Any) -> Tensor:
    """The tensor of which ``local`` is this process's part, spread over ``mesh`` as ``like`` is."""
    from torch.distributed.tensor import DTensor  # a second of imports

    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def fitted(value: Tensor, own: Any) -> Tensor:
    """``value`` as ``own`` is: whole, or a piece on its mesh and device; all have to call it.

    Checkpoints are read into pieces on the host. Whatever takes their place among parameters or
    moments of an optimizer has to be where those are: an operation of pieces on two meshes fails.

    Args:
        value: whole or a piece, on any device.
        own: what it is to be copied to, or to be used with.

    Returns:
        a tensor of the values and the type of ``value``: itself where it is as ``own`` is, or has
        another shape and is whole or goes to a whole one.
    """
    if not is_piece(own):
        return whole(value) if value.shape == own.shape else value
    if not is_piece(value):
        if value.shape != own.shape:  # such as a counter of steps, which is whole on each process
            return value
        # cut where it is, so that the device has no room to give but for this process's part
        return piece_around(
            _part_of(value, own).to(here(own).device, copy=True), own, own.device_mesh
        )
    placed: Any = value
    if value.shape == own.shape and placed.placements != own.placements:
        value = placed = placed.redistribute(placements=own.placements)
    local, device = here(value), here(own).device
    if placed.device_mesh == own.device_mesh and local.device == device:
        return value
    return piece_around(local.to(device), value, own.device_mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``, gathered where it is a piece; all processes have to call it."""
    piece: Any = tensor
    gathered: Tensor = piece.full_tensor() if is_piece(tensor) else tensor
    return gathered


def _part_of(tensor: Tensor, own: Any) -> Tensor:
    """What of a whole ``tensor`` this process has of ``own``, as a view."""
    mesh = own.device_mesh
    for size, index, placement in zip(
        mesh.shape, mesh.get_coordinate(), own.placements, strict=True
    ):
        if placement.is_shard():
            parts = tensor.chunk(size, placement.dim)
            is_left = index < len(parts)  # the last ranks may have none
            tensor = parts[index] if is_left else tensor.narrow(placement.dim, 0, 0)
    return tensor


def fitted_all(values: Any, own: Any) -> Any:
    """A dict of tensors, each spread as the one of the same name in ``own`` is."""
    result = copy.copy(values)  # with the versions that a module's state dict carries
    for name, value in values.items():
        if isinstance(value, Tensor) and isinstance(own.get(name), Tensor):
            result[name] = fitted(value, own[name])
    return result
