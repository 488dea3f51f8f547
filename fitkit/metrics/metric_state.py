"""The state of a metric that accumulates by itself: its ``state_dict``, or its plain attributes."""

from __future__ import annotations

import copy
import copyreg
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import nn

from fitkit.core.errors import CheckpointError, ConfigurationError

# Attributes of these types do not change: they come from the script, like other configuration.
_CONFIGURATION = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
    np.ufunc,
    partial,
    type,
)
_ATTRIBUTES = "<attributes>"  # no key of a module's state dict
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def saves_itself(metric: Any) -> bool:
    """Whether ``state_dict`` and ``load_state_dict`` of a metric hold all that it accumulates.

    A module of torchmetrics does; other modules may accumulate in attributes that are no buffers.
    """
    has_both = all(_has(metric, name) for name in ("state_dict", "load_state_dict"))
    return has_both and (not isinstance(metric, nn.Module) or _has(metric, "persistent"))


def require_state(name: str, metric: Any) -> None:
    """Raise ``ConfigurationError`` if a metric keeps its state where it cannot be found."""
    kind = type(metric).__name__
    has, lacks = "state_dict", "load_state_dict"
    if _has(metric, has) != _has(metric, lacks):
        has, lacks = (has, lacks) if _has(metric, has) else (lacks, has)
        raise ConfigurationError(
            f"metric {name!r} has {has} but no {lacks}, so an epoch could not be resumed in the "
            f"middle: give {kind} both of them, or neither if its attributes are its state."
        )
    if not saves_itself(metric) and not _has_only_attributes(metric):
        raise ConfigurationError(
            f"metric {name!r} has no state_dict and load_state_dict, and {kind} keeps its state "
            f"elsewhere than in plain attributes, so an epoch could not be resumed in the middle: "
            f"give it both methods, or make it a plain class without __slots__."
        )


def state_of(metric: Any) -> dict[str, Any]:
    """What ``load_state`` needs; live values, not copies."""
    state: dict[str, Any] = dict(metric.state_dict()) if _has(metric, "state_dict") else {}
    if not saves_itself(metric):
        state[_ATTRIBUTES] = attributes_of(metric)
    return state


def load_state(name: str, metric: Any, state: dict[str, Any]) -> None:
    """Restore what ``state_of`` returned."""
    attributes = state.get(_ATTRIBUTES)
    if _has(metric, "load_state_dict"):
        metric.load_state_dict({key: state[key] for key in state if key != _ATTRIBUTES})
    elif attributes is None:
        raise CheckpointError(
            f"the checkpoint was made in the middle of an epoch without the state of metric "
            f"{name!r}: resume from a checkpoint at the end of an epoch."
        )
    if attributes is not None:
        for attribute in attributes_of(metric):
            del vars(metric)[attribute]
        vars(metric).update(copy.deepcopy(attributes))


def attributes_of(metric: Any) -> dict[str, Any]:
    """The attributes in which a metric accumulates, with live values."""
    internal = _OF_EVERY_MODULE if isinstance(metric, nn.Module) else frozenset()
    return {
        name: value
        for name, value in vars(metric).items()
        if name not in internal and not isinstance(value, _CONFIGURATION)
    }


def _has_only_attributes(metric: Any) -> bool:
    """Whether a copy of the object consists of its class and ``vars`` only."""
    reduced: Any = metric.__reduce_ex__(4)
    make, arguments, state, *items = reduced if isinstance(reduced, tuple) else (None, (), None)
    is_plain = make is copyreg.__newobj__ and arguments == (type(metric),)  # type: ignore[attr-defined]
    has_vars = hasattr(metric, "__dict__") and (state is None or isinstance(state, dict))
    return is_plain and has_vars and all(item is None for item in items)


def _has(metric: Any, name: str) -> bool:
    return callable(getattr(metric, name, None))
