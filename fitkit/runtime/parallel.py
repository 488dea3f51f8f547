"""How several processes train one model: what is done to the model, and to its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.runtime.world import World

Place = Callable[[Tensor], Tensor]


class Parallel:
    """One process: nothing has to be done.

    Attributes:
        is_sharded: each process keeps only a part of every parameter.
        beside: the processes as a thread beside the program's speaks to them.
    """

    is_sharded = False

    def __init__(self, world: World) -> None:
        self.beside = world

    def shard(self, module: nn.Module) -> None:
        """Spread the parameters over the processes, in place."""

    def wrap(self, module: nn.Module) -> nn.Module:
        """The model to call in training."""
        return module

    def held_back(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with`` backward passes may leave gradients those of this process."""
        return nullcontext()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that backward passes held back."""

    def without_gradients(self) -> AbstractContextManager[Any]:
        """Inside ``with`` the model is called for its outputs alone."""
        return torch.inference_mode()

    def locally(self, place: Place) -> Place:
        """``place``, given what of each tensor is on this process."""
        return place

    def empty_piece(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor to be filled from a checkpoint, spread like parameters, on the CPU."""
        return torch.empty(shape, dtype=dtype)


class DataParallel(Parallel):
    """The model of one process among several, each of which has all of it; gradients are averaged.

    Args:
        world: the processes.
        options: arguments of ``DistributedDataParallel``.
    """

    def __init__(self, world: World, **options: Any) -> None:
        super().__init__(world)
        self._world = world
        self._options = options

    def wrap(self, module: nn.Module) -> nn.Module:
        """The model to call in training: its weights are those of the main process everywhere."""
        if self._world.size == 1 or not any(one.requires_grad for one in module.parameters()):
            return module
        return DistributedDataParallel(module, **self._options)

    def held_back(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with`` backward passes only add to this process's gradients."""
        if isinstance(model, DistributedDataParallel):
            context: AbstractContextManager[None] = model.no_sync()
            return context
        return nullcontext()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that backward passes held back.

        One that is missing here counts as zero; one that is missing everywhere stays missing.
        """
        if self._world.size == 1:
            return
        trained = [one for one in parameters if one.requires_grad]
        present = torch.tensor([float(one.grad is not None) for one in trained])
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        flat = [gradient.reshape(-1) for gradient in gradients]
        packed = self._world.sum(torch.cat([*flat, present.to(flat[0])]))
        *sums, counts = packed.split_with_sizes([*map(len, flat), len(trained)])
        for parameter, total, count in zip(trained, sums, counts.tolist(), strict=True):
            if count:
                parameter.grad = (total / self._world.size).view_as(parameter).to(parameter.dtype)
