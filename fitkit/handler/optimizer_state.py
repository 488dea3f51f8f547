"""Loading the state of an optimizer or scheduler from a checkpoint, after checks.

torch loads most of it unchecked: a moment of another shape corrupts memory in its fused kernels,
and every key of a scheduler's state becomes an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import ASGD, Optimizer

from fitkit.checkpointing.format.class_names import class_name
from fitkit.checkpointing.format.encoding import decode
from fitkit.core.errors import CheckpointError, listed
from fitkit.core.same_structure import require_same_structure
from fitkit.core.state_placement import place_like
from fitkit.distributed.dtensor import distribute_all_like
from fitkit.handler.group_options import IMPLEMENTATION_FLAGS, MEMBERS

# torch's optimizers whose moments have other shapes than their parameters
_OTHER_SHAPES = ("Adafactor", "LBFGS", "SparseAdam")
_INNER = "_schedulers"  # the attribute of torch's schedulers that are composed of others
_REMOVED = ("verbose",)  # what schedulers of earlier releases of torch saved


def require_class(optimizer: Optimizer, saved_class: str | None) -> None:
    """Raise ``CheckpointError`` if the state in a checkpoint is of another class."""
    own_name = class_name(type(optimizer))
    if saved_class not in (None, own_name):
        raise CheckpointError(
            f"the checkpoint holds the state of {saved_class!r}, this handler has {own_name!r}: "
            f"set the same optimizer, or pass skip_optimizer=True to NNHandler.load."
        )


def require_loadable(
    optimizer: Optimizer,
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Raise ``CheckpointError`` unless ``optimizer`` could have the encoded state ``saved``.

    ``groups`` are the parameter groups that it then has; by default its own.
    """
    groups = optimizer.param_groups if groups is None else groups
    try:
        sizes = [len(group["params"]) for group in saved["param_groups"]]
    except (LookupError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint's optimizer state has no parameter groups."
        ) from error
    own_sizes = [len(group["params"]) for group in groups]
    if own_sizes != sizes:
        raise CheckpointError(
            f"the checkpoint's optimizer has parameter groups of {sizes} parameters, this "
            f"handler's of {own_sizes}: set the optimizer as it was saved."
        )
    try:
        _require_same_state_structure(decode(saved), optimizer, groups)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the optimizer's state in the checkpoint cannot be read: {error!r}. Use another "
            f"checkpoint, or pass skip_optimizer=True to NNHandler.load."
        ) from error


def _require_same_state_structure(
    saved: Any, optimizer: Optimizer, groups: Sequence[Mapping[str, Any]]
) -> None:
    for number, (entry, group) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        for key in group.keys() - {*MEMBERS, *IMPLEMENTATION_FLAGS}:
            if key in entry or (key in optimizer.defaults and not _is_switch(group[key])):
                # others are a scheduler's, or of another release of torch
                require_same_structure(
                    entry[key], group[key], f"the optimizer's {key} of group {number}"
                )
        states = [saved["state"].get(index, {}) for index in entry["params"]]
        kinds = [_kinds(values) for values in states if values]
        for values, parameter in zip(states, group["params"], strict=True):
            _require_moments(values, parameter, optimizer)
            if values and _kinds(values) != kinds[0] and _has_moments_like_parameters(optimizer):
                raise CheckpointError(
                    f"the optimizer's state in the checkpoint is not the same for all parameters "
                    f"of group {number}: {listed(_kinds(values))} and {listed(kinds[0])}."
                )
    indices = {index for entry in saved["param_groups"] for index in entry["params"]}
    for key in saved["state"].keys() - indices:  # an optimizer's own, which torch passes on
        if isinstance(key, int):
            raise KeyError(key)


def _is_switch(option: Any) -> bool:
    """Whether an option is of the kind that releases of torch add: off or on."""
    return option is None or isinstance(option, bool)


def _kinds(values: Mapping[Any, Any]) -> set[str]:
    """The names in the state of a parameter, with which of them are tensors."""
    return {
        f"{name}, a tensor" if isinstance(value, Tensor) else str(name)
        for name, value in values.items()
        if not str(name).startswith("_")
    }


def _parameters_by_index(saved: Mapping[str, Any], optimizer: Optimizer) -> dict[Any, Tensor]:
    """The parameters by the indices that a saved state has for them."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    return dict(zip(indices, parameters, strict=True))


def _require_moments(values: Mapping[str, Any], parameter: Tensor, optimizer: Optimizer) -> None:
    if not _has_moments_like_parameters(optimizer):
        return
    for name, value in values.items():
        if str(name).startswith("_"):  # of another release of torch, which this one does not use
            continue
        if isinstance(value, Tensor):
            fits = value.ndim == 0 or value.shape == parameter.shape
        elif value is None:
            fits = name == "momentum_buffer"  # of SGD without momentum
        else:
            fits = name == "step" and isinstance(value, (int, float))
        if not fits or not isinstance(name, str):
            raise CheckpointError(
                f"the optimizer's state in the checkpoint does not fit: {name!r} of a parameter of "
                f"shape {tuple(parameter.shape)} has {getattr(value, 'shape', value)!r}. Use "
                f"another checkpoint, or pass skip_optimizer=True to NNHandler.load."
            )


def _has_moments_like_parameters(optimizer: Optimizer) -> bool:
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim") and kind.__name__ not in _OTHER_SHAPES


def has_modes(optimizer: Any) -> bool:
    """Whether an optimizer has ``train()`` and ``eval()``, as schedule-free ones have."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def state_of(component: Any) -> dict[str, Any] | None:
    """The ``state_dict`` of a component that may be missing."""
    found: dict[str, Any] | None = None if component is None else component.state_dict()
    return found


def load_optimizer(optimizer: Optimizer | None, saved: dict[str, Any] | None) -> None:
    """Load a state that ``require_loadable`` accepts; flags of the implementation stay.

    Its tensors are placed, and distributed over the ranks, as the optimizer's own.
    """
    if optimizer is None or not saved:
        return
    # torch decides by these flags on which device a step counter belongs
    groups = [
        {
            **{key: own[key] for key in own.keys() - group.keys() if _is_switch(own[key])},
            **place_like(group, own),
            **{key: own[key] for key in IMPLEMENTATION_FLAGS if key in own},
        }
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    state = _distribute(saved, optimizer)
    optimizer.load_state_dict({**saved, "param_groups": groups, "state": state})
    if _has_moments_like_parameters(optimizer):
        _place_counters(optimizer)


def _place_counters(optimizer: Optimizer) -> None:
    """Put counters where a new optimizer has them; elsewhere, steps would wait for the device."""
    always = type(optimizer) is ASGD
    for group in optimizer.param_groups:
        is_on_device = always or group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            device = parameter.device if is_on_device else torch.device("cpu")
            move_counters(optimizer.state.get(parameter, {}), device)


def _distribute(saved: dict[str, Any], optimizer: Optimizer) -> dict[Any, Any]:
    """The state of each parameter, distributed over the ranks as the parameter is."""
    parameters = _parameters_by_index(saved, optimizer)
    state = dict(saved["state"])
    for index in state.keys() & parameters.keys():
        parameter = parameters[index]
        values = distribute_all_like(state[index], dict.fromkeys(state[index], parameter))
        step = values.get("step")
        if isinstance(step, Tensor) and step.ndim:  # torch does not move it: it expects a scalar
            values["step"] = step.to(parameter.device)
        state[index] = values
    return state


def move_counters(state: dict[str, Any], device: torch.device) -> None:
    """Move the counters in the state of one parameter to ``device``."""
    for name in ("step", "mu_product"):  # the latter is NAdam's
        if isinstance(state.get(name), Tensor):
            state[name] = state[name].to(device)


def load_scheduler(scheduler: Any, saved: dict[str, Any]) -> None:
    """Load a state, if the scheduler could have it, with tensors where the scheduler's own are.

    A scheduler of the program's own may gain attributes, which are its state, as it steps. Private
    keys that it does not know are of another release of torch: they are left out, and missing ones
    stay as they are in the new scheduler.
    """
    own = scheduler.state_dict()
    known = _known_state(scheduler, saved, own)
    require_same_structure(known, own, "the scheduler's state")
    scheduler.load_state_dict(place_like(known, own))


def _known_state(scheduler: Any, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """``saved`` without what only another release of torch keeps; the rest must be known."""
    known = {key: saved[key] for key in saved if key in own}
    is_torchs = type(scheduler).__module__.startswith("torch.")
    for key in saved:
        if key in known:
            continue
        is_reserved = key == "optimizer" or callable(getattr(scheduler, key, None))
        if not is_torchs and not is_reserved:
            known[key] = saved[key]
        elif not str(key).startswith("_") and not (is_torchs and key in _REMOVED):
            raise CheckpointError(
                f"the scheduler's state in the checkpoint has {key!r}, which a "
                f"{type(scheduler).__name__} does not have: set the scheduler as it was saved."
            )
    inner, states = getattr(scheduler, _INNER, None), known.get(_INNER)
    if is_torchs and isinstance(inner, (list, tuple)) and isinstance(states, (list, tuple)):
        if len(inner) != len(states):
            raise CheckpointError(
                f"the scheduler's state in the checkpoint is of {len(states)} schedulers, a "
                f"{type(scheduler).__name__} here has {len(inner)}: set it as it was saved."
            )
        known[_INNER] = [
            _known_state(one, state, one.state_dict()) if isinstance(state, Mapping) else state
            for one, state in zip(inner, states, strict=True)
        ]
    return known
