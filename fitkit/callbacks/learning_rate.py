"""Reading and setting the learning rate of a parameter group."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fitkit.core.errors import ConfigurationError


def require_optimizer(optimizer: Optimizer | None, owner: str) -> Optimizer:
    """``optimizer``, if there is one.

    Raises:
        ConfigurationError: there is none.
    """
    if optimizer is None:
        raise ConfigurationError(
            f"{owner} works on the optimizer's learning rate, but no optimizer is set: call "
            f"set_optimizer."
        )
    return optimizer


def get_learning_rate(group: dict[str, Any]) -> float:
    """The learning rate of a parameter group."""
    return float(group["lr"])


def set_learning_rate(group: dict[str, Any], value: float) -> None:
    """Give a parameter group a learning rate; one that is a tensor stays the same tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


def value_now(value: Any) -> Any:
    """``value``; a copy of a tensor, which may be changed in place, without waiting for it."""
    return value.clone() if isinstance(value, Tensor) else value
