"""What the optimizer and the schedule in a checkpoint must look like before they are put to use.

torch takes most of it over unseen: a moment of another shape corrupts memory in its fused kernels,
and a scheduler's state becomes its attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, Optimizer

from fitkit.core.devices import placed_like
from fitkit.core.errors import CheckpointError, listed
from fitkit.core.likeness import require_like
from fitkit.runtime.pieces import fitted_all

# How a step is computed is the program's business, not the checkpoint's.
IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
_SHAPED_OTHERWISE = ("Adafactor", "LBFGS", "SparseAdam")


def require_optimizer_state(saved: Any, optimizer: Optimizer) -> None:
    """Fail unless ``saved`` is a state that ``optimizer`` could have.

    Raises:
        CheckpointError: it is not; the sentence says where.
    """
    own = optimizer.state_dict()
    try:
        for number, (group, mine) in enumerate(
            zip(saved["param_groups"], own["param_groups"], strict=True)
        ):
            for key in mine.keys() - {"params", *IMPLEMENTATION}:
                require_like(group[key], mine[key], f"the optimizer's {key} of group {number}")
        indices = [index for group in saved["param_groups"] for index in group["params"]]
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        by_index = dict(zip(indices, parameters, strict=True))
        names = [set(values) for values in saved["state"].values() if values]
        for index, values in saved["state"].items():
            _require_moments(values, by_index[index], optimizer)
            if values and set(values) != names[0] and _is_of_torch(optimizer):
                raise CheckpointError(
                    f"the optimizer's state in the checkpoint is not the same for all parameters: "
                    f"{listed(map(str, values))} and {listed(map(str, names[0]))}."
                )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the optimizer's state in the checkpoint cannot be read: {error!r}. Use another "
            f"checkpoint, or pass skip_optimizer=True to NNHandler.load."
        ) from error


def _require_moments(values: Mapping[str, Any], parameter: Tensor, optimizer: Optimizer) -> None:
    if not _is_of_torch(optimizer):
        return
    for name, value in values.items():
        if isinstance(value, Tensor):
            fits = value.ndim == 0 or value.shape == parameter.shape
        else:
            fits = value is None or isinstance(value, (int, float))
        if not fits or not isinstance(name, str):
            raise CheckpointError(
                f"the optimizer's state in the checkpoint does not fit: {name!r} of a parameter of "
                f"shape {tuple(parameter.shape)} has {getattr(value, 'shape', value)!r}. Use "
                f"another checkpoint, or pass skip_optimizer=True to NNHandler.load."
            )


def _is_of_torch(optimizer: Optimizer) -> bool:
    """Whether its moments have the shapes of their parameters."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim") and kind.__name__ not in _SHAPED_OTHERWISE


def load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Take over a state that was looked at; how steps are computed stays the program's choice.

    Its tensors go to the devices, and are spread over the processes, as the program's are.
    """
    # torch decides by these flags where a step counter belongs, so they have to be there first
    groups = [
        {**placed_like(group, own), **{key: own[key] for key in IMPLEMENTATION if key in own}}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    state = _spread(saved, optimizer)
    optimizer.load_state_dict({**saved, "param_groups": groups, "state": state})
    if _is_of_torch(optimizer):
        _place_counters(optimizer)


def _place_counters(optimizer: Optimizer) -> None:
    """Put counters where a fresh optimizer has them; elsewhere, steps would wait for the device."""
    always = type(optimizer) is ASGD
    for group in optimizer.param_groups:
        is_on_device = always or group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            device = parameter.device if is_on_device else torch.device("cpu")
            move_counters(optimizer.state.get(parameter, {}), device)


def _spread(saved: dict[str, Any], optimizer: Optimizer) -> dict[Any, Any]:
    """The state of each parameter, spread over the processes as the parameter is."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    own = dict(zip(indices, parameters, strict=True))
    spread = {
        index: fitted_all(values, dict.fromkeys(values, own[index]))
        for index, values in saved["state"].items()
    }
    for index, values in spread.items():
        step = values.get("step")
        if isinstance(step, Tensor) and step.ndim:  # torch takes it for a number, and leaves it
            values["step"] = step.to(own[index].device)
    return spread


def move_counters(state: dict[str, Any], device: torch.device) -> None:
    """Put what an optimizer counts for one parameter on ``device``."""
    for name in ("step", "mu_product"):  # the latter is NAdam's
        if isinstance(state.get(name), Tensor):
            state[name] = state[name].to(device)


def require_scheduler_state(saved: Mapping[str, Any], scheduler: Any) -> None:
    """Fail unless ``saved`` is a state that ``scheduler`` could have; else it becomes attributes.

    Raises:
        CheckpointError: it is not.
    """
    own = scheduler.state_dict()
    unknown = [key for key in saved if key not in own]
    if unknown:
        raise CheckpointError(
            f"the scheduler's state in the checkpoint has {unknown[0]!r}, which a "
            f"{type(scheduler).__name__} does not have: set the scheduler as it was saved."
        )
    require_like(saved, own, "the scheduler's state")


def load_scheduler(scheduler: Any, saved: dict[str, Any]) -> None:
    """Take over a state, with its tensors where the scheduler's own are.

    Raises:
        CheckpointError: the scheduler could not have it.
    """
    require_scheduler_state(saved, scheduler)
    scheduler.load_state_dict(placed_like(saved, scheduler.state_dict()))
