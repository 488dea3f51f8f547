"""Validation sets: their names in the logs and in checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fitkit.core.errors import ConfigurationError, listed

UNNAMED = ""  # the only set of most runs


def sets_of(params: Mapping[str, Any]) -> list[str]:
    """The names of the validation sets in the ``params`` of a call of ``fit``."""
    return list(params.get("validation_sets", [UNNAMED] if params.get("validation") else []))


def log_prefix(name: str) -> str:
    """What precedes the names of a set's values in the logs.

    >>> log_prefix(""), log_prefix("noisy")
    ('val_', 'val_noisy_')
    """
    return f"val_{name}_" if name else "val_"


def pass_name(name: str) -> str:
    """The name of the data pass in a checkpoint."""
    return f"validation {name}" if name else "validation"


def logged_names(sets: Iterable[str], values: Iterable[str]) -> list[str]:
    """The names under which ``sets`` log ``values``, such as ``loss`` and the metrics."""
    values = list(values)
    return [f"{log_prefix(name)}{value}" for name in sets for value in values]


def named_values(
    prefix: str, values: Mapping[str, float], taken: Iterable[str]
) -> dict[str, float]:
    """``values`` of a set with their names in the logs.

    Raises:
        ConfigurationError: one of the names is ``taken``, as by a value that a step logs.
    """
    named = {f"{prefix}{name}": value for name, value in values.items()}
    if clashes := named.keys() & set(taken):
        raise ConfigurationError(
            f"a validation set logs {listed(clashes)}, which is logged already: give the set, or "
            f"the value, another name."
        )
    return named


def require_distinct_names(sets: Iterable[str], values: Iterable[str]) -> None:
    """Raise ``ConfigurationError`` if two values of the sets would have one name in the logs."""
    twice = [name for name, count in Counter(logged_names(sets, values)).items() if count > 1]
    if twice:
        raise ConfigurationError(
            f"two validation sets would log {listed(twice)}: give the sets, or the metrics, other "
            f"names."
        )
