"""Data-parallel training: the wrapper around a model, and what its gradients need."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.runtime.world import World


class DataParallel:
    """The model of one process among several whose gradients are averaged.

    Args:
        world: the processes.
        options: arguments of ``DistributedDataParallel``, such as ``find_unused_parameters``.
    """

    def __init__(self, world: World, **options: Any) -> None:
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
