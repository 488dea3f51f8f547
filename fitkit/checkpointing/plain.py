"""Tensors and plain types: the only things that a checkpoint may hold.

``torch.load(weights_only=True)`` refuses NumPy scalars, ``deque``, ``Path`` and others that
callbacks like to keep. Those are written as tagged dicts and come back as what they were.
"""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.core.errors import CheckpointError

TAG = "__fitkit__"
_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.Size)


def to_plain(value: Any, path: str = "state") -> Any:
    """``value`` with every leaf a tensor or a plain type.

    Args:
        value: what is to be saved; it is not changed.
        path: where it stands, for the error.

    Raises:
        CheckpointError: a leaf is of another type; the sentence names its path.
    """
    if type(value) in _ATOMS or isinstance(value, _TORCH_ATOMS):
        return value
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    if isinstance(value, dict) and type(value) in (dict, OrderedDict, Counter):
        return _plain_dict(value, path)
    if type(value) in (list, tuple, set):
        return type(value)(to_plain(item, f"{path}[{i}]") for i, item in enumerate(value))
    return _tagged(value, path)


def _plain_dict(value: dict[Any, Any], path: str) -> Any:
    plain = {}
    for key, item in value.items():
        if type(key) not in _ATOMS and type(key) is not tuple:
            raise CheckpointError(
                f"{path} has a key of type {type(key).__name__}, but a checkpoint takes only plain "
                f"keys (str, int, ...): convert it."
            )
        plain[key] = to_plain(item, f"{path}[{key!r}]")
    if isinstance(value, OrderedDict):
        ordered = OrderedDict(plain)
        metadata = getattr(value, "_metadata", None)  # module state dicts carry versions in it
        if metadata is not None:
            vars(ordered)["_metadata"] = to_plain(metadata, f"{path}._metadata")
        return ordered
    return Counter(plain) if isinstance(value, Counter) else plain


def _tagged(value: Any, path: str) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum) and isinstance(value.value, _ATOMS):
        return value.value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {TAG: "ndarray", "data": torch.from_numpy(value.copy()), "dtype": str(value.dtype)}
    if isinstance(value, deque):
        items = [to_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return {TAG: "deque", "items": items, "maxlen": value.maxlen}
    if type(value) is frozenset:
        return {TAG: "frozenset", "items": [to_plain(item, path) for item in value]}
    if isinstance(value, PurePath):
        return {TAG: "path", "path": value.as_posix()}
    if isinstance(value, datetime.timedelta):
        return {TAG: "timedelta", "parts": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, datetime.datetime):
        return {TAG: "datetime", "iso": value.isoformat()}
    if isinstance(value, range):
        return {TAG: "range", "parts": [value.start, value.stop, value.step]}
    if isinstance(value, Mapping):
        return {key: to_plain(item, f"{path}[{key!r}]") for key, item in value.items()}
    for base in (list, tuple, dict, str, int, float):  # named tuples and the like
        if isinstance(value, base):
            return to_plain(base(value), path)
    raise CheckpointError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, but a checkpoint holds "
        f"only tensors and plain types (numbers, strings, lists, dicts, ...): save what describes "
        f"it instead, and rebuild it when the state is loaded."
    )


_FROM_TAG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ndarray": lambda saved: saved["data"].cpu().numpy().astype(saved["dtype"]),
    "deque": lambda saved: deque(from_plain(saved["items"]), saved["maxlen"]),
    "frozenset": lambda saved: frozenset(from_plain(saved["items"])),
    "path": lambda saved: Path(saved["path"]),
    "timedelta": lambda saved: datetime.timedelta(*saved["parts"]),
    "datetime": lambda saved: datetime.datetime.fromisoformat(saved["iso"]),
    "range": lambda saved: range(*saved["parts"]),
}


def from_plain(value: Any) -> Any:
    """The value that ``to_plain`` was given.

    Raises:
        CheckpointError: a tag is unknown or its content does not fit.
    """
    if type(value) is dict:
        if TAG in value:
            return _untagged(value)
        return {key: from_plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(from_plain(item) for item in value)
    return value


def _untagged(value: dict[str, Any]) -> Any:
    rebuild = _FROM_TAG.get(value[TAG]) if isinstance(value[TAG], str) else None
    if rebuild is None:
        raise CheckpointError(f"the checkpoint holds a value of the unknown kind {value[TAG]!r}.")
    try:
        return rebuild(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint holds a {value[TAG]} that cannot be rebuilt: {error}."
        ) from error
