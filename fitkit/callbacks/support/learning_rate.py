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


def scale_schedule(scheduler: Any, groups: list[dict[str, Any]], factors: list[float]) -> None:
    """Multiply the rates that a scheduler computes for each parameter group from its base rates.

    Else a schedule that does not multiply the rate in use would undo a change of that rate.
    """
    for group, factor in zip(groups, factors, strict=True):
        if "max_lr" in group and "min_lr" in group:  # OneCycleLR keeps its rates there
            for name in ("initial_lr", "max_lr", "min_lr"):
                group[name] = group[name] * factor
    if scheduler is not None:
        scheduler.load_state_dict(_scaled(scheduler.state_dict(), factors))


def _scaled(state: dict[str, Any], factors: list[float]) -> dict[str, Any]:
    scaled = dict(state)
    for name in ("base_lrs", "max_lrs", "_last_lr"):
        if name in state:
            pairs = zip(state[name], factors, strict=False)
            scaled[name] = [rate * factor for rate, factor in pairs]
    if "_schedulers" in state:
        scaled["_schedulers"] = [_scaled(inner, factors) for inner in state["_schedulers"]]
    return scaled
