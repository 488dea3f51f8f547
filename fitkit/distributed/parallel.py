"""Parallel and DDPParallel: what a rank does to train one model with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.core.tree import TensorMap
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

    def wrap(self, module: nn.Module) -> nn.Module:
        """The model to call in training."""
        return module

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with``, backward passes need not average gradients."""
        return nullcontext()

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average gradients that were accumulated in ``no_sync``."""

    def zero_loss(self, model: nn.Module, loss: Tensor | None, *, has_called_model: bool) -> Tensor:
        """A loss without gradients, for a rank that has no weight in a batch of all ranks.

        ``loss``: what the step returned, if it was not skipped; it may be NaN.
        """
        raise NotImplementedError  # a single rank has all weight

    def sync_loss(self, parameters: Iterable[Tensor], *, is_full: bool) -> None:
        """Average the gradients of a loss module after a backward pass.

        ``is_full``: it was the last one of an accumulation window.
        """

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

    def wrap(self, module: nn.Module) -> nn.Module:
        """The model to call in training; all ranks start with the weights of rank 0."""
        trained = [p for p in module.parameters() if p.requires_grad]
        if self._world.size == 1 or not trained:
            return module
        group = self._world.group_for(trained[0].device)
        # the default group, which torch would take, may have no backend for host tensors
        options = self._options if group is None else {**self._options, "process_group": group}
        return DistributedDataParallel(module, **options)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with``, backward passes do not average gradients."""
        if isinstance(model, DistributedDataParallel):
            context: AbstractContextManager[None] = model.no_sync()
            return context
        return nullcontext()

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average accumulated gradients in place; one that is missing on some ranks is 0 there."""
        average_over_ranks(self._world, parameters)

    def zero_loss(self, model: nn.Module, loss: Tensor | None, *, has_called_model: bool) -> Tensor:
        """A loss by which gradients of zero are averaged with those of the other ranks."""
        if not isinstance(model, DistributedDataParallel):
            return torch.zeros((), requires_grad=True)
        # a forward pass has to come before each average; the first of a batch copies buffers too
        module, model.module = model.module, _Zero(model.module)
        model.require_forward_param_sync = not has_called_model
        try:
            zero: Tensor = model()
        finally:
            model.module = module
        return zero

    def sync_loss(self, parameters: Iterable[Tensor], *, is_full: bool) -> None:
        """Average once per window, as ``no_sync`` has it for the model."""
        if is_full:
            average_over_ranks(self._world, parameters)


class _Zero(nn.Module):
    """A sum over no element of each trained parameter of a module, in its place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module  # DDP copies its buffers

    def forward(self) -> Tensor:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return torch.stack([p.flatten()[:0].sum().float() for p in trained]).sum()


@torch.no_grad()
def average_over_ranks(world: World, parameters: Iterable[Tensor]) -> None:
    """Average gradients in place; one that is missing on some ranks is 0 there."""
    trained = [p for p in parameters if p.requires_grad]
    if world.size == 1 or not trained:
        return
    kinds = world.largest([_kind_of_gradient(p) for p in trained])
    for parameter, kind in zip(trained, kinds, strict=True):
        if kind == _NONE:
            continue
        if parameter.grad is None:
            zeros = torch.zeros_like(parameter)
            parameter.grad = zeros.to_sparse(1) if kind == _SPARSE else zeros
        if kind == _SPARSE:
            parameter.grad = _averaged_sparse(world, parameter.grad)
        else:
            _average(world, parameter.grad)


_NONE, _STRIDED, _SPARSE = range(3)


def _kind_of_gradient(parameter: Tensor) -> int:
    if parameter.grad is None:
        return _NONE
    return _SPARSE if parameter.grad.is_sparse else _STRIDED


def _average(world: World, gradient: Tensor) -> None:
    # All-reduce adds what is at the same place in memory, and strides may differ between ranks.
    contiguous = gradient.contiguous()
    world.sum_in_place(contiguous)
    contiguous.div_(world.size)
    if contiguous is not gradient:
        gradient.copy_(contiguous)


def _averaged_sparse(world: World, gradient: Tensor) -> Tensor:
    summed = gradient.coalesce()
    world.sum_in_place(summed)
    return summed.div_(world.size)
