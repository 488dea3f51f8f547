"""A run under way as its next checkpoint would describe it, without what is heavy."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from fitkit.checkpointing.references import name_of
from fitkit.runtime.device import device_name
from fitkit.version import __version__

# Of what callbacks know of a call, that which a person gave, or would ask for.
_OF_FIT = (
    "epochs",
    "last_epoch",
    "steps",
    "validation_steps",
    "validate_every",
    "save_on_last_epoch",
)


def outline(handler: Any) -> dict[str, Any]:
    """The part of a handler's state that a report shows, by the keys of a checkpoint.

    Nothing is copied and no other process takes part.
    """
    parts = handler.parts
    loss = None if parts.loss is None else parts.loss.function
    return {
        "fitkit_version": __version__,
        "pytorch_version": str(torch.__version__),
        "model_type": parts.model_type.value,
        "model_class": name_of(type(handler.module)),
        "model_kwargs": None if parts.model_spec is None else parts.model_spec.kwargs,
        **_described("optimizer", parts.optimizer_spec),
        **_described("scheduler", parts.scheduler_spec),
        "scheduler_interval": parts.scheduler_interval,
        "scheduler_monitor": parts.scheduler_monitor,
        "loss": {"class": _name_of_function(loss), "kwargs": getattr(parts.loss, "kwargs", {})},
        "model_state_dict": handler.module.state_dict(),
        "optimizer_state_dict": {"param_groups": _rates(handler.optimizer)},
        "ema_state_dict": None if handler.ema is None else {"decay": handler.ema.decay},
        "callback_states": handler.callbacks.state_dict(),
        "history": handler.history.state_dict(),
        "progress": {"state": handler.state.state_dict()},
        "seed": handler.seed,
    }


def _described(part: str, spec: Any) -> dict[str, Any]:
    if spec is None:
        return {f"{part}_class": None, f"{part}_kwargs": None}
    return {f"{part}_class": name_of(spec.cls), f"{part}_kwargs": spec.kwargs}


def _name_of_function(function: Any) -> str | None:
    if function is None:
        return None
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _rates(optimizer: Any) -> list[dict[str, float]]:
    groups = () if optimizer is None else optimizer.param_groups
    return [{"lr": float(group["lr"])} for group in groups]


def facts(handler: Any, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What no checkpoint holds otherwise: the arguments of ``fit``, and the machine."""
    fit = {name: params[name] for name in _OF_FIT if params.get(name) is not None}
    fit["gradient_accumulation_steps"] = handler.gradient_accumulation_steps
    return {
        "fit": fit,
        "environment": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "device": device_name(handler.device),
            "processes": handler.world.size,
        },
    }
