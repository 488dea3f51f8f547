"""Access to the content of a checkpoint that may have any type where it is not validated."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any


def as_mapping(value: Any) -> Mapping[Any, Any]:
    """``value`` if it is a mapping, otherwise an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_count(value: Any) -> int | None:
    """``value`` if it is an int."""
    return value if type(value) is int else None


def progress_of(state: Mapping[str, Any]) -> Mapping[Any, Any]:
    """The counters of the run."""
    return as_mapping(as_mapping(state.get("progress")).get("state"))


def callback_entries(
    state: Mapping[str, Any],
) -> list[tuple[str, Mapping[Any, Any], Mapping[Any, Any]]]:
    """The key, state and configuration of each callback, sorted by key."""
    entries = []
    for key, value in as_mapping(state.get("callback_states")).items():
        entry = as_mapping(value)
        entries.append((str(key), as_mapping(entry.get("state")), as_mapping(entry.get("config"))))
    return sorted(entries, key=itemgetter(0))


def learning_rates(optimizer_state: Any) -> list[float]:
    """The learning rate of each parameter group of a saved optimizer, where it is a number."""
    groups = as_mapping(optimizer_state).get("param_groups")
    rates = [as_mapping(group).get("lr") for group in (groups if isinstance(groups, list) else ())]
    return [float(rate) for rate in rates if isinstance(rate, (int, float))]
