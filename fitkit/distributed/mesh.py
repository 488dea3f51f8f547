"""The device meshes of FSDP: which ranks divide the model among them, and which hold copies of it.

The import takes a second, so it happens only for sharded models.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.world import World

_NAMES = ("replicate", "shard")


class Meshes(NamedTuple):
    """One layout of the ranks on two devices.

    Attributes:
        model: where parameters are.
        host: for checkpoints, which are written from, and read into, tensors on the host.
        placements: of a parameter on either.
    """

    model: DeviceMesh
    host: DeviceMesh
    placements: tuple[Placement, ...]


def make_meshes(world: World, device: torch.device, device_mesh: Any) -> Meshes:
    """The meshes for ``FSDP(device_mesh=...)``; every rank must call it.

    Raises:
        ConfigurationError: the mesh has other ranks than the run, or is on another device.
    """
    given = device_mesh if isinstance(device_mesh, DeviceMesh) else None
    sizes = given.mesh.shape if given is not None else device_mesh
    sizes = (world.size,) if sizes is None else tuple(sizes)
    if prod(sizes) != world.size or len(sizes) > len(_NAMES):
        raise ConfigurationError(
            f"FSDP's device_mesh must have as many ranks as the run, {world.size}, in one or two "
            f"dimensions (copies of the model, parts of each copy), received the sizes {sizes}: "
            f"pass sizes whose product is {world.size}."
        )
    if given is not None and given.device_type != device.type:
        raise ConfigurationError(
            f"FSDP's device_mesh is on {given.device_type!r}, the model on {device.type!r}: make "
            f"the mesh with init_device_mesh({device.type!r}, ...)."
        )
    placements = (Replicate(), Shard(0))[-len(sizes) :]
    if given is not None and device.type == "cpu":
        return Meshes(given, given, placements)
    host = _host_mesh(world, sizes if given is None else given.mesh)
    if given is None and device.type != "cpu":
        given = init_device_mesh(device.type, sizes, mesh_dim_names=_NAMES[-len(sizes) :])
    return Meshes(host if given is None else given, host, placements)


def _host_mesh(world: World, layout: Any) -> DeviceMesh:
    """A mesh for host tensors, which the default group may not take.

    ``layout``: its sizes, or the ranks in it.
    """
    group = world.group_for(torch.device("cpu"))
    ranks = layout if isinstance(layout, torch.Tensor) else torch.arange(world.size).view(layout)
    if ranks.ndim == 1:
        if group is None:
            return init_device_mesh("cpu", (world.size,), mesh_dim_names=_NAMES[1:])
        return DeviceMesh.from_group(group, "cpu", mesh_dim_names=_NAMES[1:])
    groups = [
        world.subgroup(ranks.movedim(dim, -1).reshape(-1, ranks.shape[dim]).tolist())
        for dim in range(ranks.ndim)
    ]
    return DeviceMesh.from_group(groups, "cpu", mesh=ranks, mesh_dim_names=_NAMES)
