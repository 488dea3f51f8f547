"""Clear gradients: those that an optimizer has used, and those that no optimizer uses."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from fitkit.core.trained_modules import TrainedModules


def clear_gradients(optimizer: Optimizer) -> None:
    """``optimizer.zero_grad(set_to_none=True)``, without torch's profiler label.

    The label takes longer than the rest. An overridden ``zero_grad`` is called as it is.
    """
    if getattr(optimizer.zero_grad, "__func__", None) is not Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


class OptimizedParameters:
    """The parameters that the optimizer has, and the others, whose gradients no step uses.

    Gradients of the others are dropped before each backward pass: they would add up, and no
    checkpoint holds them. A callback may use those of the last batch, and may add their parameters
    to the optimizer.
    """

    def __init__(self, optimizer: Optimizer | None, modules: TrainedModules) -> None:
        self._optimizer = optimizer
        self._modules = modules
        self._size = -1
        self._own: list[nn.Parameter] = []
        self._others: list[nn.Parameter] = []

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer has, those of model and loss first."""
        self._update()
        return self._own

    def drop_other_gradients(self) -> None:
        """Drop the gradients of the other parameters."""
        self._update()
        for parameter in self._others:
            parameter.grad = None

    def _update(self) -> None:
        """Look again which are which if a callback has added some to the optimizer."""
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        size = sum(len(group["params"]) for group in groups)
        if size == self._size:
            return
        optimized = {id(parameter) for group in groups for parameter in group["params"]}
        for parameter in self._others:
            if id(parameter) in optimized:  # it was just added, with a gradient of the last batch
                parameter.grad = None
        own: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for parameter in self._modules.parameters():
            (own if id(parameter) in optimized else others).append(parameter)
        known = set(map(id, own))  # the optimizer may have some of neither model nor loss
        own += [p for group in groups for p in group["params"] if id(p) not in known]
        self._size, self._own, self._others = size, own, others
