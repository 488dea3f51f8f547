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


class LeftoverGradients:
    """The gradients that no optimizer step clears: they would add up over the windows.

    A callback may use them until the next window, and may add their parameters to the optimizer
    later; no checkpoint holds them between windows.
    """

    def __init__(self, optimizer: Optimizer | None, modules: TrainedModules) -> None:
        self._optimizer = optimizer
        self._modules = modules
        self._num_optimized = -1
        self._others: list[nn.Parameter] = []

    def drop(self) -> None:
        """Drop them; called when a window begins."""
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        size = sum(len(group["params"]) for group in groups)
        if size == self._num_optimized:
            left = self._others
        else:  # those that were just added have gradients of the last window
            left = self._modules.parameters()
            own = {id(parameter) for group in groups for parameter in group["params"]}
            self._others = [parameter for parameter in left if id(parameter) not in own]
            self._num_optimized = size
        for parameter in left:
            parameter.grad = None
