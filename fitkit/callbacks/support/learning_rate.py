"""Reading and setting the learning rate of a parameter group."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fitkit.core.callback import Callback
from fitkit.core.errors import ConfigurationError


def require_optimizer(callback: Callback) -> None:
    """Raise ``ConfigurationError`` if the handler of ``callback`` has no optimizer."""
    if callback.handler.optimizer is None:
        raise ConfigurationError(
            f"{callback.name} works on the optimizer's learning rate, but no optimizer is set: "
            f"call set_optimizer."
        )


def set_learning_rate(group: dict[str, Any], value: float) -> None:
    """Set the learning rate of a parameter group; one that is a tensor is changed in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


def current_value(setting: Any) -> Any:
    """A setting of a parameter group; of a tensor a copy, because schedulers change it in place."""
    return setting.clone() if isinstance(setting, Tensor) else setting
