"""Checks of arguments that many constructors share."""

from __future__ import annotations

import math
import os
from numbers import Integral
from typing import Any

from torch import Tensor

from fitkit.core.errors import ConfigurationError


def require_number(name: str, value: Any, *, minimum: float = -math.inf) -> None:
    """Raise ``ConfigurationError`` unless ``value`` is a finite number of at least ``minimum``.

    A bool is refused.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a finite number, received {value!r}.")
    if value < minimum:
        raise ConfigurationError(f"{name} must be at least {minimum:g}, received {value!r}.")


def require_count(name: str, value: Any, *, minimum: int = 1, optional: bool = False) -> None:
    """Raise ``ConfigurationError`` unless ``value`` is an int of at least ``minimum``."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(
            f"{name} must be a whole number of at least {minimum}"
            f"{' or None' if optional else ''}, received {value!r}."
        )


def as_whole_number(value: Any) -> int | None:
    """``value``, or that of a tensor of one element, as an int of at least 0, or else ``None``."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, Integral) and int(value) >= 0 else None


def require_on_error(value: Any) -> None:
    """Raise ``ConfigurationError`` unless ``value`` says what a failed write means."""
    if value not in ("raise", "warn"):
        raise ConfigurationError(f"on_error must be 'raise' or 'warn', received {value!r}.")


def require_path(name: str, value: Any) -> None:
    """Raise ``ConfigurationError`` unless ``value`` is a path that is not empty."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ConfigurationError(f"{name} must be a path, received {value!r}.")
