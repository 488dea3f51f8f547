"""Converts between tensors and ``DTensor``, of which each rank holds a part.

Loaded tensors are distributed like the tensors that they replace, so any form of checkpoint can be
loaded under any strategy. ``DTensor`` takes a second to import, so that waits until it is needed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


def is_dtensor(value: Any) -> bool:
    """Whether ``value`` is a ``DTensor``."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def local_tensor(tensor: Any) -> Tensor:
    """The part of a ``DTensor`` on this rank; another tensor as it is."""
    local: Tensor = tensor.to_local() if is_dtensor(tensor) else tensor
    return local


def full_tensor(tensor: Any) -> Tensor:
    """A ``DTensor`` gathered from all ranks, which must all call it; another tensor as it is."""
    full: Tensor = tensor.full_tensor() if is_dtensor(tensor) else tensor
    return full


def own_box(tensor: Any) -> tuple[list[int], list[int]]:
    """Offsets and sizes of the part of ``tensor`` on this rank; all of a tensor that is whole."""
    if not is_dtensor(tensor):
        return [0] * tensor.ndim, list(tensor.shape)
    (box,) = tensor.__create_chunk_list__()
    return list(box.offsets), list(box.sizes)


def is_first_replica(tensor: Any) -> bool:
    """Whether no rank before this one has the same part of ``tensor``."""
    if not is_dtensor(tensor):
        return True
    coordinates = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    return not any(index for index, placement in coordinates if placement.is_replicate())


def from_local(local: Tensor, like: Any, mesh: Any) -> Tensor:
    """The ``DTensor`` on ``mesh`` that has the part ``local`` here, and the layout of ``like``."""
    from torch.distributed.tensor import DTensor  # a second of imports

    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def distribute_like(value: Tensor, like: Any) -> Tensor:
    """``value`` distributed like ``like``, on its mesh and device; all ranks must call it.

    A checkpoint is read into DTensors on the host, but a parameter or an optimizer's moment must be
    on the mesh of the others: torch has no operations of DTensors on different meshes.

    Returns:
        a tensor with the values and dtype of ``value``: ``value`` itself if nothing has to change,
        or if it has another shape and one of the two is no ``DTensor`` (a counter of steps).
    """
    if not is_dtensor(like):
        return full_tensor(value) if value.shape == like.shape else value
    device = local_tensor(like).device
    if not is_dtensor(value):
        if value.shape != like.shape:
            return value
        # sliced before the copy, so that the device needs memory for the part of this rank only
        return from_local(_local_part(value, like).to(device, copy=True), like, like.device_mesh)
    dtensor: Any = value
    if value.shape == like.shape and dtensor.placements != like.placements:
        value = dtensor = dtensor.redistribute(placements=like.placements)
    local = local_tensor(value)
    if dtensor.device_mesh == like.device_mesh and local.device == device:
        return value
    return from_local(local.to(device), value, like.device_mesh)


def _local_part(tensor: Tensor, like: Any) -> Tensor:
    """A view of the part of ``tensor`` that this rank has of ``like``."""
    for dim, (offset, size) in enumerate(zip(*own_box(like), strict=True)):
        tensor = tensor.narrow(dim, min(offset, tensor.shape[dim]), size)
    return tensor


def distribute_all_like(values: Any, like: Any) -> Any:
    """A dict of tensors, each distributed like the tensor of its name in ``like``."""
    result = copy.copy(values)  # keeps the _metadata of a module's state dict
    for name, value in values.items():
        if isinstance(value, Tensor) and isinstance(like.get(name), Tensor):
            result[name] = distribute_like(value, like[name])
    return result
