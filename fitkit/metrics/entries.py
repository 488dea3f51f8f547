"""The numbers in what a metric returned, each with a name of its own for the logs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.core.errors import DataError, describe

MAX_ENTRIES = 1000  # of one metric: each is a column of the logs


def entries(name: str, value: Any) -> dict[str, Any]:
    """The numbers in ``value`` as floats or detached scalar tensors, which are not read.

    A number is ``name``; a mapping has ``name_key``, a vector or sequence ``name_0``, ``name_1``, a
    matrix ``name_0_1``, and named tuples ``name_field``.

    >>> entries("f1", {"cat": 0.5, "dog": [1, 2]})
    {'f1_cat': 0.5, 'f1_dog_0': 1.0, 'f1_dog_1': 2.0}

    Raises:
        DataError: it holds something else, or too many numbers.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return {name: value.detach().reshape(())}
    found: dict[str, Any] = {}
    _collect(name, name, value, found)
    return found


def loggable(name: str, value: Any) -> dict[str, float]:
    """The numbers of ``entries`` as floats, or none with a warning if they cannot be logged.

    A value at the end of an epoch is no reason to lose the epoch.
    """
    try:
        found = entries(name, value)
    except DataError as error:
        warnings.warn(f"{error} It is not logged.", stacklevel=2)
        return {}
    return {key: float(number) for key, number in found.items()}


def _collect(metric: str, name: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and not value.is_complex() and value.layout is torch.strided:
        _require_few(metric, len(found) + value.numel())
        flat = value.detach().reshape(-1)
        for number, index in zip(flat, _indices(tuple(value.shape)), strict=True):
            found[f"{name}{index}"] = number
    elif isinstance(value, Mapping):
        _collect_each(metric, name, value.items(), found)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        _collect_each(metric, name, zip(value._fields, value, strict=True), found)
    elif isinstance(value, (tuple, list)):
        _collect_each(metric, name, enumerate(value), found)
    elif _is_number(value):
        _require_few(metric, len(found) + 1)
        found[name] = float(value)
    else:
        raise DataError(
            f"metric {metric!r} must return one number, or a mapping, a vector or a sequence of "
            f"numbers, received {describe(value)}"
            + ("" if name == metric else f" as {name!r}")
            + ": reduce it to numbers."
        )


def _collect_each(
    metric: str, name: str, items: Iterable[tuple[Any, Any]], found: dict[str, Any]
) -> None:
    for key, item in items:
        _collect(metric, f"{name}_{key}", item, found)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (
        hasattr(value, "__float__") and not isinstance(value, (Tensor, np.ndarray))
    )


def _indices(shape: tuple[int, ...]) -> Iterable[str]:
    """``_0``, ``_1``, ...; one number in any shape needs no index."""
    if math.prod(shape) == 1:
        return [""]
    return ["".join(f"_{part}" for part in index) for index in np.ndindex(*shape)]


def _require_few(metric: str, number: int) -> None:
    if number > MAX_ENTRIES:
        raise DataError(
            f"metric {metric!r} returned {number} numbers, at most {MAX_ENTRIES} can be logged: "
            f"reduce them, for instance to their mean."
        )
