"""Conditions: what a recorded step took for granted, and whether it still holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from operator import attrgetter, is_
from typing import Any

from torch import Generator, Tensor, nn
from torch.optim import Optimizer

_HOOKS_OF_MODULES = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)
_HOOKS_OF_OPTIMIZERS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_hooks_of_parameter = attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")


class Conditions:
    """Looks at everything that callbacks may change between two steps, and a recording cannot see.

    Modules, parameters and buffers themselves are looked up once an epoch (``renew``).

    Args:
        module: the model.
        optimizer: the optimizer.
        beyond: what the loss depends on besides, such as the epoch.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, beyond: Callable[[], Hashable]
    ) -> None:
        self._module = module
        self._optimizer = optimizer
        self._beyond = beyond
        self.renew()

    def renew(self) -> None:
        """Look up what there is."""
        self._modules = list(self._module.modules())
        self.parameters = list(self._module.parameters())
        self._tensors = [*self.parameters, *self._module.buffers()]
        self._hooks = [vars(one)[name] for one in self._modules for name in _HOOKS_OF_MODULES]

    def of_pass(self) -> tuple[Any, ...]:
        """What forward and backward depend on."""
        modes = [one.training for one in self._modules]
        trained = [one.requires_grad for one in self.parameters]
        places = [one.data_ptr() for one in self._tensors]
        return modes, trained, places, self._beyond()

    def of_step(self) -> tuple[Any, ...]:
        """Which tensors the optimizer's step works with."""
        trained = [one for group in self._optimizer.param_groups for one in group["params"]]
        state = [one for of in self._optimizer.state.values() for one in of.values()]
        return Same(trained), Same(state)

    def settings(self) -> list[Any]:
        """The optimizer's numbers; one in a tensor may change there, where a replay reads it."""
        return [
            Same([value]) if isinstance(value, Tensor) else value
            for group in self._optimizer.param_groups
            for name, value in group.items()
            if name != "params"
        ]

    def has_hooks(self) -> bool:
        """Whether Python is called inside forward or backward, which a replay would leave out."""
        return any(self._hooks) or any(any(_hooks_of_parameter(one)) for one in self.parameters)

    def has_hooks_of_step(self) -> bool:
        """Whether Python is called around the optimizer's step."""
        return any(vars(self._optimizer).get(name) for name in _HOOKS_OF_OPTIMIZERS)

    def generators(self) -> list[Generator]:
        """Generators that modules hold."""
        held = [value for one in self._modules for value in vars(one).values()]
        return [value for value in held if isinstance(value, Generator)]


class Same:
    """Objects that are equal only to themselves, not to others with the same values."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, objects: list[Any]) -> None:
        self.objects = objects  # kept alive, so that no other object takes the place of one

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or len(self.objects) != len(other.objects):
            return False
        return all(map(is_, self.objects, other.objects))
