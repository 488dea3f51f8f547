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
        trained = [one for one in module.parameters() if one.requires_grad]
        if self._world.size == 1 or not trained:
            return module
        group = self._world.group_for(trained[0].device)
        # torch's default is the default group, which may lack a backend for host tensors
        options = self._options if group is None else {**self._options, "process_group": group}
        return DistributedDataParallel(module, **options)

    def held_back(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside ``with`` backward passes only add to this process's gradients."""
        if isinstance(model, DistributedDataParallel):
            context: AbstractContextManager[None] = model.no_sync()
            return context
        return nullcontext()

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients that backward passes held back, each in its own memory.

        One that is missing here counts as zero; one that is missing everywhere stays missing.
        """
        trained = [one for one in parameters if one.requires_grad]
        if self._world.size == 1 or not trained:
            return
        is_anywhere = self._world.largest([int(one.grad is not None) for one in trained])
        for parameter, is_present in zip(trained, is_anywhere, strict=True):
            if not is_present:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self._average(parameter.grad)

    def _average(self, gradient: Tensor) -> None:
        # Another rank may have laid it out in another order, and ranks add what is at the same
        # place in memory: all send it in the order of its indices.
        sent = gradient.contiguous()
        self._world.sum_in_place(sent)
        sent.div_(self._world.size)
        if sent is not gradient:
            gradient.copy_(sent)
