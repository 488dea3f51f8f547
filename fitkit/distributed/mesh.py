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
from fitkit.distributed.data_world import DataWorld
from fitkit.distributed.world import World

_NAMES = ("replicate", "shard")


class Meshes(NamedTuple):
    """One layout of the ranks on two devices.

    Attributes:
        whole: all dimensions, where parameters are.
        model: those that FSDP divides the model along.
        host: for checkpoints, which are written from, and read into, tensors on the host.
        placements: of a parameter on ``model``.
        data_world: the ranks with other batches than this one.
    """

    whole: DeviceMesh
    model: DeviceMesh
    host: DeviceMesh
    placements: tuple[Placement, ...]
    data_world: World


def make_meshes(world: World, device: torch.device, device_mesh: Any) -> Meshes:
    """The meshes for ``FSDP(device_mesh=...)``; every rank must call it.

    Raises:
        ConfigurationError: the mesh has other ranks than the run, or is on another device.
    """
    given = device_mesh if isinstance(device_mesh, DeviceMesh) else None
    names, sizes = _dimensions(world, device_mesh)
    is_in_order = list(names) == sorted(names, key=lambda it: (*_NAMES, it).index(it))
    if prod(sizes) != world.size or not is_in_order:
        raise ConfigurationError(
            f"FSDP's device_mesh must have as many ranks as the run, {world.size}, in one or two "
            f"dimensions (copies of the model, parts of each copy) and those of parallelize=, "
            f"in this order, received {dict(zip(names, sizes, strict=False)) or sizes}: pass sizes "
            f"whose product is {world.size}."
        )
    if given is not None and given.device_type != device.type:
        raise ConfigurationError(
            f"FSDP's device_mesh is on {given.device_type!r}, the model on {device.type!r}: make "
            f"the mesh with init_device_mesh({device.type!r}, ...)."
        )
    ranks = torch.arange(world.size).view(sizes) if given is None else given.mesh
    host = given if given is not None and device.type == "cpu" else _host_mesh(world, ranks, names)
    if given is None:
        given = (
            host
            if device.type == "cpu"
            else init_device_mesh(device.type, sizes, mesh_dim_names=names)
        )
    own = tuple(name for name in names if name in _NAMES)
    placements = (Replicate(), Shard(0))[-len(own) :]
    model = given if own == names else given[own]
    return Meshes(given, model, host, placements, _data_world(world, ranks, names))


def _dimensions(world: World, device_mesh: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and sizes; of dimensions without names, at most two, the last is divided along."""
    if isinstance(device_mesh, dict):
        return tuple(device_mesh), tuple(device_mesh.values())
    sizes: tuple[int, ...] = (world.size,)
    if device_mesh is not None:
        sizes = tuple(getattr(device_mesh, "shape", device_mesh))
    names = getattr(device_mesh, "mesh_dim_names", None) or ()
    if "shard" in names:
        return tuple(names), sizes
    return (_NAMES[-len(sizes) :], sizes) if 0 < len(sizes) <= len(_NAMES) else ((), (0,))


def _host_mesh(world: World, ranks: torch.Tensor, names: tuple[str, ...]) -> DeviceMesh:
    """A mesh for host tensors, which the default group may not take."""
    group = world.group_for(torch.device("cpu"))
    if ranks.ndim == 1:
        if group is None:
            return init_device_mesh("cpu", (world.size,), mesh_dim_names=names)
        return DeviceMesh.from_group(group, "cpu", mesh_dim_names=names)
    groups = [world.subgroup(_lines(ranks, (dim,))) for dim in range(ranks.ndim)]
    return DeviceMesh.from_group(groups, "cpu", mesh=ranks, mesh_dim_names=names)


def _data_world(world: World, ranks: torch.Tensor, names: tuple[str, ...]) -> World:
    shared = [dim for dim, name in enumerate(names) if name in _NAMES]
    if len(shared) == len(names):
        return world
    lines = _lines(ranks, tuple(shared))
    if len(lines[0]) == 1:
        return World()
    group = world.subgroup(lines)
    (own,) = (line for line in lines if world.rank in line)
    return DataWorld(world, own, group)


def _lines(ranks: torch.Tensor, dims: tuple[int, ...]) -> list[list[int]]:
    """The ranks that differ only in these dimensions, for each combination of the others."""
    last = ranks.movedim(dims, tuple(range(-len(dims), 0)))
    found: list[list[int]] = last.reshape(-1, prod(last.shape[-len(dims) :])).tolist()
    return found
