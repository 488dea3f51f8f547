"""Parallel and DDPParallel: what a rank does to train one model with the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fitkit.core.trained_modules import TrainedModules
from fitkit.core.tree import TensorMap
from fitkit.distributed.ddp_step_sync import DDPStepSync
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World


class Parallel:
    """A single rank, which has nothing to do; base class of several ranks.

    Attributes:
        is_sharded: each rank keeps only a part of every parameter.
        side_world: the ranks, for communication in a second thread.
    """

    is_sharded = False

    def __init__(self, world: World) -> None:
        self._world = world
        self.side_world = world

    def data_world(self, world: World) -> World:
        """Those of the ranks that share out the batches; others compute the same ones with them."""
        return world

    def place(self, build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
        """Build a module, on ``device``, sharded, with rank 0's values; every rank must call it."""
        module = build().to(device)
        self._world.copy_from_main(module.state_dict().values())
        self.shard(module)
        return module

    def shard(self, module: nn.Module) -> None:
        """Shard the parameters over the ranks, in place."""

    def step_sync(
        self, modules: TrainedModules, optimizer: Optimizer | None, *, is_custom: bool
    ) -> StepSync | None:
        """What a training step does together with the other ranks; ``None``: nothing.

        All ranks begin with the values of rank 0. ``is_custom``: the step is the user's.
        """
        return None

    def running(self, module: nn.Module) -> AbstractContextManager[None]:
        """The context in which a custom step runs, which may call any part of ``module``."""
        return nullcontext()

    def on_local_tensors(self, tensor_map: TensorMap) -> TensorMap:
        """``tensor_map`` applied to the local part of each tensor."""
        return tensor_map

    def empty_dtensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
    ) -> Tensor:
        """An uninitialized tensor on the host or on ``"meta"``, into which a checkpoint is read."""
        return torch.empty(shape, dtype=dtype, device=device)


class DDPParallel(Parallel):
    """One rank of ``DistributedDataParallel``, which takes ``options``."""

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(world)
        self._options = options

    def step_sync(
        self, modules: TrainedModules, optimizer: Optimizer | None, *, is_custom: bool
    ) -> StepSync | None:
        """What a training step does together with the other ranks; ``None`` for a single rank."""
        if self._world.size == 1:
            return None
        return DDPStepSync(modules, optimizer, self._world, self._options, is_custom=is_custom)
