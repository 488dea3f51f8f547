"""Checks of arguments that many constructors share."""

from __future__ import annotations

import math
from typing import Any

from fitkit.core.errors import ConfigurationError


def require_number(name: str, value: Any) -> None:
    """Fail unless ``value`` is a finite number (bools are not).

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigurationError(f"{name} must be a finite number, received {value!r}.")


def require_count(name: str, value: Any, *, minimum: int = 1, optional: bool = False) -> None:
    """Fail unless ``value`` is a whole number of at least ``minimum`` (bools are not).

    Raises:
        ConfigurationError: it is not.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(
            f"{name} must be a whole number of at least {minimum}"
            f"{' or None' if optional else ''}, received {value!r}."
        )
