"""What ``NNHandler.sample`` and its neighbours are given, checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.generative.reverse import METHODS


def as_conditions(given: Any, size: int, name: str = "conditions") -> tuple[Any, ...]:
    """One or several conditions for ``size`` samples; a first dimension of 1 serves all of them.

    Args:
        given: a tensor or a sequence of tensors ``(size, ...)`` or ``(1, ...)``.
        size: samples.
        name: what they are called in the error.

    Raises:
        ConfigurationError: a condition is no tensor, or for another number of samples.
    """
    conditions = (given,) if isinstance(given, Tensor) else tuple(given)
    for condition in conditions:
        if not (isinstance(condition, Tensor) and condition.ndim and len(condition) in (1, size)):
            found = tuple(condition.shape) if isinstance(condition, Tensor) else repr(condition)
            raise ConfigurationError(
                f"{name} must be tensors of shape ({size}, ...) or (1, ...), received {found}."
            )
    return tuple(c.expand(size, *c.shape[1:]) for c in conditions)


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of samples as a tuple.

    Raises:
        ConfigurationError: it is not ``(samples, ...)`` in positive whole numbers.
    """
    size = tuple(shape)
    if len(size) < 2 or not all(type(n) is int and n > 0 for n in size):
        raise ConfigurationError(
            f"the shape of samples must be at least two positive whole numbers, (samples, ...), "
            f"received {size!r}."
        )
    return size


def method_of(name: str, options: dict[str, Any]) -> Callable[..., Tensor]:
    """The function of that name, which takes these options.

    Raises:
        ConfigurationError: there is none, or it does not.
    """
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
