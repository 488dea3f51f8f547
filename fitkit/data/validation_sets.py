"""Tells several validation sets by name from one set of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset

from fitkit.core.errors import ConfigurationError, describe, listed
from fitkit.core.validation_sets import UNNAMED
from fitkit.data.in_memory import is_in_memory
from fitkit.data.seeded_fetch import is_map_style
from fitkit.data.spec import DataSpec
from fitkit.data.split_batch import INPUT_KEYS, TARGET_KEYS

_MOST_SETS = 20  # a longer list can only have batches, too many to look at each of them


def as_validation_sets(data: Any) -> dict[str, Any]:
    """The validation sets in ``data`` by their names; the name of a single one is empty.

    A mapping with an array among its values, or with keys for inputs and targets (``x`` and ``y``,
    ...), is one set in memory. Any other mapping is a set per entry: datasets, loaders, ``(x, y)``
    pairs, lists of batches, or mappings of arrays.

    Raises:
        ConfigurationError: several sets have no names, or a mapping mixes arrays and datasets.
    """
    if isinstance(data, (list, tuple)) and any(map(_is_set, data[:_MOST_SETS])):
        kinds = ", ".join(describe(one) for one in data)
        raise ConfigurationError(
            f"several validation sets must be a dict with a name for each, such as "
            f"{{'clean': a, 'noisy': b}}, which logs val_clean_loss and val_noisy_loss; received a "
            f"{type(data).__name__} of {kinds}."
        )
    if not isinstance(data, Mapping) or not data:
        return {UNNAMED: data}
    arrays = [name for name, value in data.items() if _is_array(value)]
    has_sets = any(map(_is_set, data.values()))
    if has_sets and arrays:
        raise ConfigurationError(
            f"a dict as validation data must hold arrays only (one set), or a set under each name; "
            f"received arrays for {listed(map(str, arrays))} beside datasets or loaders: for a set "
            f"of inputs only, pass a tuple of one array."
        )
    has_both = not data.keys().isdisjoint(INPUT_KEYS) and not data.keys().isdisjoint(TARGET_KEYS)
    if not has_sets and (arrays or has_both):
        return {UNNAMED: data}
    for name in data:
        require_set_name(name)
    return dict(data)


def add_validation_sets(
    before: Mapping[str, DataSpec], data: Any, name: str | None, loader_kwargs: Mapping[str, Any]
) -> dict[str, DataSpec]:
    """The sets of ``data``; with ``name`` those from before and ``data`` as the set ``name``.

    Raises:
        ConfigurationError: as ``as_validation_sets``, or ``data`` under one name are several sets.
    """
    sets = as_validation_sets(data)
    if name is None:
        return {n: DataSpec.from_loader_kwargs(one, loader_kwargs) for n, one in sets.items()}
    require_set_name(name)
    if UNNAMED not in sets:
        raise ConfigurationError(
            f"set_val_loader(name={name!r}) takes one set, received a dict of the sets "
            f"{listed(sets)}: leave out name=."
        )
    return {**before, name: DataSpec.from_loader_kwargs(data, loader_kwargs)}


def require_set_name(name: Any) -> None:
    """Raise ``ConfigurationError`` unless ``name`` can be the name of a validation set."""
    if not isinstance(name, str) or not name:
        raise ConfigurationError(
            f"the name of a validation set must be a non-empty string, received {name!r}."
        )


def _is_set(value: Any) -> bool:
    """Whether a value can only be a whole data set, not one of its arrays or batches."""
    if is_in_memory(value):
        return False
    return isinstance(value, (Dataset, DataLoader)) or is_map_style(value)


def _is_array(value: Any) -> bool:
    return is_in_memory(value) and not isinstance(value, (tuple, Mapping))
