"""Fully sharded training: parameters, gradients and optimizer state spread over the processes.

Importing this takes a second, so only what meets sharded tensors does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

from fitkit.runtime.parallel import FSDP, Parallel
from fitkit.runtime.pieces import here, is_piece
from fitkit.runtime.world import World

_Place = Callable[[Tensor], Tensor]


class FullySharded(Parallel):
    """The model of one process among several, each of which keeps a part of every parameter.

    Backward passes reduce gradients at once, also those that an optimizer step waits for: what is
    added up in between is spread like the parameters, and so is its place in a checkpoint.

    Args:
        world: the processes.
        device: where they compute.
        policy: what the user chose.
    """

    is_sharded = True

    def __init__(self, world: World, device: torch.device, policy: FSDP) -> None:
        super().__init__(world)
        self.beside = world.beside()
        self._policy = policy
        self._mesh = init_device_mesh(device.type, (world.size,))
        self._host_mesh = self._mesh
        if device.type != "cpu":  # copies of pieces in memory that checkpoints are written from
            self._host_mesh = init_device_mesh("cpu", (world.size,))

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters, in place; an optimizer has to be made afterwards."""
        precision = MixedPrecisionPolicy(self._policy.param_dtype, self._policy.reduce_dtype)
        for part in (*_blocks(module, self._policy.blocks), module):
            # without the last gathering again, weights could be swapped only after a backward pass
            fully_shard(part, mesh=self._mesh, mp_policy=precision, reshard_after_forward=True)

    def locally(self, place: _Place) -> _Place:
        """``place``, given what of each tensor is on this process."""

        def placed(tensor: Tensor) -> Tensor:
            if not is_piece(tensor):
                return place(tensor)
            local = place(here(tensor))
            mesh = self._host_mesh if local.device.type == "cpu" else self._mesh
            return _piece_around(local, tensor, mesh)

        return placed

    def empty_piece(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be filled, spread along its first dimension, on the CPU."""
        return empty(shape, dtype=dtype, device_mesh=self._host_mesh, placements=[Shard(0)])


def _blocks(module: nn.Module, kinds: Any) -> Iterator[nn.Module]:
    """The parts that are gathered one at a time, inner ones first."""
    for name, part in reversed(list(module.named_modules())):
        if kinds is None:
            parent = module.get_submodule(name.rpartition(".")[0])
            is_block = isinstance(parent, nn.ModuleList)
        else:
            is_block = isinstance(part, kinds)
        if is_block and part is not module and any(True for _ in part.parameters()):
            yield part


def _piece_around(local: Tensor, like: Any, mesh: DeviceMesh) -> Tensor:
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def spread(value: Tensor, own: Any) -> Tensor:
    """A whole tensor, which every process has, spread as ``own`` is."""
    return distribute_tensor(
        value.to(own.device), own.device_mesh, own.placements, src_data_rank=None
    )
