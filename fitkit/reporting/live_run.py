"""The state of a live run by the keys of a checkpoint, without a checkpoint."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from fitkit.checkpointing.format.class_names import class_name
from fitkit.checkpointing.format.component_config import encode_class
from fitkit.runtime.device import device_name
from fitkit.runtime.lazy_modules import with_values
from fitkit.version import __version__

_FIT_ARGUMENTS = (
    "epochs",
    "last_epoch",
    "steps",
    "validation_steps",
    "validate_every",
    "save_on_last_epoch",
)


def live_state(handler: Any) -> dict[str, Any]:
    """The part of a handler's state that a report shows, by the keys of a checkpoint.

    Nothing is copied, and other ranks do not take part.
    """
    parts = handler.parts
    loss = None if parts.loss is None else parts.loss.function
    loss_class = None if loss is None else loss if hasattr(loss, "__qualname__") else type(loss)
    groups = () if handler.optimizer is None else handler.optimizer.param_groups
    return {
        "fitkit_version": __version__,
        "pytorch_version": str(torch.__version__),
        "model_type": parts.model_type.value,
        "model_class": class_name(type(handler.module)),
        "model_kwargs": _kwargs(parts.model_spec),
        "optimizer_class": encode_class(parts.optimizer_spec),
        "optimizer_kwargs": _kwargs(parts.optimizer_spec),
        "scheduler_class": encode_class(parts.scheduler_spec),
        "scheduler_kwargs": _kwargs(parts.scheduler_spec),
        "scheduler_interval": parts.scheduler_interval,
        "scheduler_monitor": parts.scheduler_monitor,
        "loss": {"class": loss_class and class_name(loss_class), "kwargs": _kwargs(parts.loss)},
        "model_state_dict": with_values(handler.module.state_dict()),
        "optimizer_state_dict": {"param_groups": [{"lr": float(group["lr"])} for group in groups]},
        "ema_state_dict": None if handler.ema is None else {"decay": handler.ema.decay},
        "callback_states": handler.callbacks.state_dict(),
        "history": handler.history.state_dict(),
        "progress": {"state": handler.state.state_dict()},
        "seed": handler.seed,
    }


def _kwargs(spec: Any) -> Any:
    return None if spec is None else spec.kwargs


def run_facts(handler: Any, params: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The arguments of ``fit`` and the machine, which checkpoints do not hold."""
    fit = {name: params[name] for name in _FIT_ARGUMENTS if params.get(name) is not None}
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
