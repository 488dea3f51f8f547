"""FSDPParallel: fully sharded training.

The import takes a second, so it happens only for sharded models.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor, empty
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.tree import TensorMap
from fitkit.distributed.deferred_values import DeferredValues, return_memory
from fitkit.distributed.dtensor import from_local, is_dtensor, local_tensor
from fitkit.distributed.fsdp_step_sync import FSDPStepSync
from fitkit.distributed.gathered_model import GatheredModel
from fitkit.distributed.mesh import make_meshes
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World

_LOGGER = logging.getLogger("fitkit")
_MANY_BYTES = 1 << 30


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
        device_mesh: Any = None,
        parallelize: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        super().__init__(world)
        self.side_world = world.side_group()
        self._blocks = blocks
        self._precision = MixedPrecisionPolicy(param_dtype, reduce_dtype)
        self._models: dict[nn.Module, GatheredModel] = {}
        self._meshes = make_meshes(world, device, device_mesh)
        self._parallelize = parallelize

    def data_world(self, world: World) -> World:
        """Those of the ranks that share out the batches; others compute the same ones with them."""
        return self._meshes.data_world

    def place(self, build: Callable[[], nn.Module], device: torch.device) -> nn.Module:
        """As in ``Parallel``, but each rank holds no more than its part and one block at a time."""
        if self._parallelize is not None:  # it distributes the values of whole parameters
            return super().place(build, device)
        with DeferredValues() as values:
            module = build()
        values.restore_all_but(module)
        _report_whole(module)

        def prepare(part: nn.Module) -> None:
            """Give the parameters that are sharded next memory, device and values."""
            owners = [it for it in part.modules() if not any(map(is_dtensor, _own(it)))]
            values.restore(chain(*map(_own, owners)), with_values=self._world.is_main)
            for owner in owners:
                _move(owner, device)
            distinct = {id(it): it.detach() for it in chain(*map(_own, owners))}
            self._world.copy_from_main(distinct.values())

        self.shard(module, prepare)
        self._world.copy_from_main(module.buffers())
        return module

    def shard(
        self, module: nn.Module, prepare: Callable[[nn.Module], None] = lambda _: None
    ) -> None:
        """Shard the parameters in place; the optimizer must be built afterwards.

        ``prepare`` is called with each part of the module before it is sharded.
        """
        if self._parallelize is not None:
            self._parallelize(module, self._meshes.whole)
            _require_distributed(module)
        options: dict[str, Any] = {"mesh": self._meshes.model, "mp_policy": self._precision}
        for part in (*_blocks(module, self._blocks), module):
            prepare(part)
            # else parameters stay gathered after an evaluation and hide averaged weights
            fully_shard(part, **options, reshard_after_forward=True)
            return_memory()

    def step_sync(
        self, modules: TrainedModules, optimizer: Optimizer | None, *, is_custom: bool
    ) -> StepSync | None:
        """What a training step does together with the other ranks."""
        model = self._gathered(modules.model)
        return FSDPStepSync(
            modules,
            optimizer,
            self._world,
            model,
            is_custom=is_custom,
            num_batches=self._meshes.data_world.size,
        )

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
            is_on_host = local.device.type == "cpu"
            mesh = self._meshes.host if is_on_host else self._meshes.whole
            return from_local(local, tensor, mesh)

        return map_local

    def empty_dtensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
    ) -> Tensor:
        """An uninitialized ``DTensor`` on the host, sharded along its first dimension."""
        mesh, placements = self._meshes.host, self._meshes.placements
        if self._parallelize is not None:  # parts of parts are cut out of whole tensors
            return super().empty_dtensor(shape, dtype, device)
        if device == "meta":
            whole = torch.empty(shape, dtype=dtype, device=device)
            return distribute_tensor(whole, mesh, placements, src_data_rank=None)
        return empty(shape, dtype=dtype, device_mesh=mesh, placements=placements)


def _blocks(module: nn.Module, kinds: Any) -> list[nn.Module]:
    """The submodules that are gathered one at a time, inner ones first.

    One that shares parameters with modules outside is none: both must be gathered together.
    """
    owners = defaultdict[nn.Parameter, set[nn.Module]](set)
    for part in module.modules():
        for parameter in _own(part):
            owners[parameter].add(part)
    found = []
    for name, part in reversed(list(module.named_modules())):
        if kinds is None:
            parent = module.get_submodule(name.rpartition(".")[0])
            is_block = isinstance(parent, nn.ModuleList)
        else:
            is_block = isinstance(part, kinds)
        if is_block and part is not module and (parameters := list(part.parameters())):
            inside = set(part.modules())
            if all(owners[parameter] <= inside for parameter in parameters):
                found.append(part)
    return found


def _require_distributed(module: nn.Module) -> None:
    left = [name for name, it in module.named_parameters() if not is_dtensor(it)]
    if left:
        raise ConfigurationError(
            f"FSDP's parallelize must distribute every parameter, and left {listed(left)}: name "
            f"their modules in the plan of parallelize_module, or use distribute_tensor with "
            f"Replicate()."
        )


def _move(owner: Any, device: torch.device) -> None:
    owner._apply(lambda tensor: tensor.to(device), recurse=False)  # noqa: SLF001  no public form


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _report_whole(module: nn.Module) -> None:
    """Say once if much of a model is whole on each rank until it is sharded."""
    whole = {it.untyped_storage() for it in module.parameters() if not is_lazy(it)}
    num_bytes = sum(storage.nbytes() for storage in whole)
    if num_bytes > _MANY_BYTES:
        _LOGGER.warning(
            "%.1f GB of %s are whole on each rank until it is sharded: pass the model's class and "
            "its arguments, and initialize parameters in place, as torch.nn.init does.",
            num_bytes / 1e9,
            type(module).__name__,
        )
