"""FSDPParallel: fully sharded training.

The import takes a second, so it happens only for sharded models.
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
from torch.optim import Optimizer

from fitkit.core.trained_modules import TrainedModules
from fitkit.core.tree import TensorMap
from fitkit.distributed.dtensor import from_local, is_dtensor, local_tensor
from fitkit.distributed.fsdp_step_sync import FSDPStepSync
from fitkit.distributed.gathered_model import GatheredModel
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World


class FSDPParallel(Parallel):
    """One rank of FSDP2 (``fully_shard``); the arguments are those of the strategy ``FSDP``.

    Every backward pass of an accumulation window reduces gradients, so accumulated gradients are
    sharded like the parameters, also in a checkpoint.
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
        self._world = world
        self.side_world = world.side_group()
        self._blocks = blocks
        self._precision = MixedPrecisionPolicy(param_dtype, reduce_dtype)
        self._models: dict[nn.Module, GatheredModel] = {}
        # checkpoints are written from, and read into, DTensors on the host
        self._host_mesh = _host_mesh(world)
        self._mesh = self._host_mesh
        if device.type != "cpu":
            self._mesh = init_device_mesh(device.type, (world.size,))

    def shard(self, module: nn.Module) -> None:
        """Shard the parameters in place; the optimizer must be built afterwards."""
        options: dict[str, Any] = {"mesh": self._mesh, "mp_policy": self._precision}
        for part in (*_blocks(module, self._blocks), module):
            # else parameters stay gathered after an evaluation and hide averaged weights
            fully_shard(part, **options, reshard_after_forward=True)

    def step_sync(
        self, modules: TrainedModules, optimizer: Optimizer | None, *, is_custom: bool
    ) -> StepSync | None:
        """What a training step does together with the other ranks."""
        model = self._gathered(modules.model)
        return FSDPStepSync(modules, optimizer, self._world, model, is_custom=is_custom)

    def running(self, module: nn.Module) -> AbstractContextManager[None]:
        """The context of a step: inside ``with``, any part of the model may be called."""
        return self._gathered(module).running()

    def _gathered(self, module: nn.Module) -> GatheredModel:
        if module not in self._models:
            self._models[module] = GatheredModel(module)
        return self._models[module]

    def on_local_tensors(self, tensor_map: TensorMap) -> TensorMap:
        """``tensor_map`` applied to the local part of each tensor."""

        def map_local(tensor: Tensor) -> Tensor:
            if not is_dtensor(tensor):
                return tensor_map(tensor)
            local = tensor_map(local_tensor(tensor))
            mesh = self._host_mesh if local.device.type == "cpu" else self._mesh
            return from_local(local, tensor, mesh)

        return map_local

    def empty_dtensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized ``DTensor`` on the host, sharded along its first dimension."""
        return empty(shape, dtype=dtype, device_mesh=self._host_mesh, placements=[Shard(0)])


def _blocks(module: nn.Module, kinds: Any) -> Iterator[nn.Module]:
    """The submodules that are gathered one at a time, inner ones first."""
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
