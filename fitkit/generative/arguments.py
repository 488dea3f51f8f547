"""Checks of the arguments of ``ScoreModel``; each raises ``ConfigurationError``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.generative.sampling_methods import METHODS


def as_conditions(given: Any, size: int, name: str = "conditions") -> tuple[Any, ...]:
    """Expand one or several tensors ``(size, ...)`` or ``(1, ...)`` to ``size`` samples."""
    conditions = (given,) if isinstance(given, Tensor) else tuple(given)
    for condition in conditions:
        if not (isinstance(condition, Tensor) and condition.ndim and len(condition) in (1, size)):
            received = tuple(condition.shape) if isinstance(condition, Tensor) else repr(condition)
            raise ConfigurationError(
                f"{name} must be tensors of shape ({size}, ...) or (1, ...), received {received}."
            )
    return tuple(c.expand(size, *c.shape[1:]) for c in conditions)


def as_sample_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape ``(samples, ...)`` of positive integers, as a tuple."""
    size = tuple(shape)
    if len(size) < 2 or not all(type(n) is int and n > 0 for n in size):
        raise ConfigurationError(
            f"the shape of samples must be at least two positive integers, (samples, ...), "
            f"received {size!r}."
        )
    return size


def find_method(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """The sampling method called ``name``, which takes ``options``."""
    if name not in METHODS:
        raise ConfigurationError(
            f"method must be one of {listed(METHODS)}, received {name!r}."
            + did_you_mean(str(name), METHODS)
        )
    known = inspect.signature(METHODS[name]).parameters
    names = [n for n, p in known.items() if p.kind is p.KEYWORD_ONLY and n != "steps"]
    unknown = [option for option in options if option not in names]
    if unknown:
        raise ConfigurationError(
            f"method {name!r} takes the options {listed(names)}, received {listed(unknown)}."
            + did_you_mean(unknown[0], names)
        )
    return METHODS[name]
