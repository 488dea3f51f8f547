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
_ARRAY_TYPES = frozenset(
    f"{kind}{bits}"
    for kind, sizes in {
        "bool": ("",),
        "int": (8, 16, 32, 64),
        "uint": (8, 16, 32, 64),
        "float": (16, 32, 64),
        "complex": (64, 128),
    }.items()
    for bits in sizes
)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.Size)


def to_plain(value: Any, path: str = "state") -> Any:
    """``value`` with every leaf a tensor or a plain type.

    Args:
        value: what is to be saved; it is not changed.
        path: where it stands, for the error.

    Raises:
        CheckpointError: a leaf is of another type; the sentence names its path.
    """
    if type(value) is bytes and value == b"":  # pickled as a call, which no reader allows
        return {TAG: "bytes", "text": ""}
    if type(value) in _ATOMS or isinstance(value, _TORCH_ATOMS):
        return value
    if isinstance(value, Tensor):
        # a subclass, or attributes of a tensor, could not be loaded again
        plain = value.detach()
        return plain if type(plain) is Tensor else plain.as_subclass(Tensor)
    if isinstance(value, dict) and type(value) in (dict, OrderedDict, Counter):
        return _plain_dict(value, path)
    if type(value) in (list, tuple):
        return type(value)(to_plain(item, f"{path}[{i}]") for i, item in enumerate(value))
    return _tagged(value, path)


def _plain_dict(value: dict[Any, Any], path: str) -> Any:
    plain = {}
    for key, item in value.items():
        if not _is_plain_key(key):
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


def _is_plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(map(_is_plain_key, key))
    return type(key) in _ATOMS and not (type(key) is bytes and key == b"")


def _tagged(value: Any, path: str) -> Any:
    if isinstance(value, np.generic):
        return _plain_scalar(value, path)
    if isinstance(value, Enum) and isinstance(value.value, _ATOMS):
        return to_plain(value.value, path)
    if type(value) in (np.ndarray, np.memmap) and value.dtype.name in _ARRAY_TYPES:
        native = np.array(value, dtype=value.dtype.newbyteorder("="))
        return {TAG: "ndarray", "data": torch.from_numpy(native), "dtype": str(value.dtype)}
    if type(value) is set:
        items = [to_plain(item, path) for item in value]
        return set(items) if all(map(_is_plain_key, items)) else {TAG: "set", "items": items}
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
    bases: tuple[Any, ...] = (list, tuple, dict, str, int, float)
    for base in bases:  # named tuples and other subclasses
        if isinstance(value, base):
            return to_plain(base(value), path)
    raise CheckpointError(
        f"{path} is a {type(value).__module__}.{type(value).__qualname__}, but a checkpoint holds "
        f"only tensors and plain types (numbers, strings, lists, dicts, ...): save what describes "
        f"it instead, and rebuild it when the state is loaded."
    )


def _plain_scalar(value: np.generic[Any], path: str) -> Any:
    item = value.item()
    if isinstance(item, np.generic):  # of more digits than Python's own types have
        item = complex(value) if isinstance(value, np.complexfloating) else float(value)
    return to_plain(item, path)


_FROM_TAG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ndarray": lambda saved: _array(saved["data"], saved["dtype"]),
    "set": lambda saved: set(from_plain(saved["items"])),
    "bytes": lambda saved: saved["text"].encode(),
    "deque": lambda saved: deque(from_plain(saved["items"]), saved["maxlen"]),
    "frozenset": lambda saved: frozenset(from_plain(saved["items"])),
    "path": lambda saved: Path(saved["path"]),
    "timedelta": lambda saved: datetime.timedelta(*saved["parts"]),
    "datetime": lambda saved: datetime.datetime.fromisoformat(saved["iso"]),
    "range": lambda saved: range(*saved["parts"]),
}


def _array(data: Tensor, name: str) -> Any:
    dtype = np.dtype(name)
    if dtype.name not in _ARRAY_TYPES:
        raise ValueError(f"an array of {name!r}")
    return data.cpu().numpy().astype(dtype)


def from_plain(value: Any) -> Any:
    """The value that ``to_plain`` was given.

    Raises:
        CheckpointError: a tag is unknown or its content does not fit.
    """
    if type(value) is dict:
        if TAG in value:
            return _untagged(value)
        return {key: from_plain(item) for key, item in value.items()}
    if type(value) is OrderedDict:
        ordered = OrderedDict((key, from_plain(item)) for key, item in value.items())
        vars(ordered).update(vars(value))
        return ordered
    if type(value) in (list, tuple, set):
        return type(value)(from_plain(item) for item in value)
    return value


def _untagged(value: dict[str, Any]) -> Any:
    rebuild = _FROM_TAG.get(value[TAG]) if isinstance(value[TAG], str) else None
    if rebuild is None:
        raise CheckpointError(f"the checkpoint holds a value of the unknown kind {value[TAG]!r}.")
    try:
        return rebuild(value)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a constructor says of arguments that mean nothing
        raise CheckpointError(
            f"the checkpoint holds a {value[TAG]} that cannot be rebuilt: {error}."
        ) from error
