"""Fully sharded training: parameters, gradients and optimizer state spread over the processes.

Importing this takes a second, so only what meets sharded tensors does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard, empty

from fitkit.runtime.parallel import Parallel, Place
from fitkit.runtime.pieces import here, is_piece, piece_around
from fitkit.runtime.world import World


class FullySharded(Parallel):
    """The model of one process among several, each of which keeps a part of every parameter.

    Backward passes reduce gradients at once, also those that an optimizer step waits for: what is
    added up in between is spread like the parameters, and so is its place in a checkpoint.

    Args:
        world: the processes.
        device: where they compute.
        blocks: kinds of modules that are gathered one at a time; ``None``: items of lists.
        param_dtype: type that parameters are gathered in; ``None``: their own.
        reduce_dtype: type that gradients are reduced in; ``None``: that of parameters.
    """

    is_sharded = True

    def __init__(
        self,
        world: World,
        device: torch.device,
        blocks: Any = None,
        param_dtype: torch.dtype | None = None,
        reduce_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(world)
        self.beside = world.beside()
        self._blocks = blocks
        self._precision = MixedPrecisionPolicy(param_dtype, reduce_dtype)
        # pieces on the host are what checkpoints are written from, and read into
        self._host_mesh = _host_mesh(world)
        self._mesh = self._host_mesh
        if device.type != "cpu":
            self._mesh = init_device_mesh(device.type, (world.size,))

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters, in place; an optimizer has to be made afterwards."""
        how: dict[str, Any] = {"mesh": self._mesh, "mp_policy": self._precision}
        for part in (*_blocks(module, self._blocks), module):
            # else the parameters of an evaluation stay gathered, and averaged ones out of sight
            fully_shard(part, **how, reshard_after_forward=True)

    def without_gradients(self) -> AbstractContextManager[Any]:
        """What is gathered in inference mode could not be gathered into again for training."""
        return torch.no_grad()

    def locally(self, place: Place) -> Place:
        """``place``, given what of each tensor is on this process."""

        def placed(tensor: Tensor) -> Tensor:
            if not is_piece(tensor):
                return place(tensor)
            local = place(here(tensor))
            mesh = self._host_mesh if local.device.type == "cpu" else self._mesh
            return piece_around(local, tensor, mesh)

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


def _host_mesh(world: World) -> DeviceMesh:
    group = world.group_for(torch.device("cpu"))
    if group is None:
        return init_device_mesh("cpu", (world.size,))
    return DeviceMesh.from_group(group, "cpu")  # the default group may take no host tensors
