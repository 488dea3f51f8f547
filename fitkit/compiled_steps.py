"""CompiledSteps: an optimizer's steps through torch.compile, where that gains anything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fitkit.contents import move_counters


class CompiledSteps:
    """An optimizer whose ``step`` goes through ``torch.compile``."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            # torch's compiler does so before a first step, but not after a resume
            if "capturable" in group and all(one.is_cuda or one.is_xpu for one in group["params"]):
                group["capturable"] = True
                for parameter in group["params"]:
                    move_counters(optimizer.state.get(parameter, {}), parameter.device)
        self.step = torch.compile(optimizer.step)


def is_worth_compiling(optimizer: Optimizer, scheduler: LRScheduler | None) -> bool:
    """Whether compiled steps of ``optimizer`` are the same and faster.

    Those of torch that can be captured were made for it. A learning rate that is no tensor is
    compiled in, so with a scheduler each of its values would be compiled anew.
    """
    groups = optimizer.param_groups
    is_of_torch = type(optimizer).__module__.startswith("torch.optim.")
    is_fixed = scheduler is None or all(isinstance(one["lr"], Tensor) for one in groups)
    return is_of_torch and is_fixed and all("capturable" in one for one in groups)


def remember_flags(optimizer: Optimizer | None) -> Callable[[], None]:
    """A function that puts back what ``CompiledSteps`` sets in the optimizer's groups."""
    groups = [] if optimizer is None else optimizer.param_groups
    flags = [(group, group["capturable"]) for group in groups if "capturable" in group]

    def put_back() -> None:
        for group, capturable in flags:
            group["capturable"] = capturable

    return put_back
