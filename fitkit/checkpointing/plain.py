"""Tensors and plain types: the only things that a checkpoint may hold.

``torch.load(weights_only=True)`` refuses NumPy scalars, ``deque``, ``Path`` and others that
callbacks like to keep. Those are written as tagged dicts and come back as what they were.
"""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.core.devices import DEEPEST
from fitkit.core.errors import CheckpointError
from fitkit.runtime.pieces import is_piece

Place = Callable[[Tensor], Tensor]

TAG = "__fitkit__"
_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_SIMPLE = frozenset(_ATOMS) - {bytes}
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


def to_plain(value: Any, name: str = "state", place: Place = lambda tensor: tensor) -> Any:
    """``value`` with every leaf a tensor or a plain type.

    Args:
        value: what is to be saved; it is not changed.
        name: what it is called in the error.
        place: gives what stands for each tensor; by default the tensor itself, live.

    Raises:
        CheckpointError: a leaf is of another type, or it is nested too deep; the sentence says
            where.
    """
    try:
        return _plain(value, DEEPEST, place)
    except _UnsavableError as error:
        raise CheckpointError(f"{name}{error.path} {error}") from None


class _UnsavableError(Exception):
    """What a leaf is that a checkpoint cannot hold; ``path`` grows on the way out of containers."""

    path = ""


def _plain(value: Any, depth: int, place: Place) -> Any:
    """``value`` in at most ``depth`` levels."""
    kind = type(value)
    if kind in _ATOMS:
        # an empty one is pickled as a call, which no reader allows
        return {TAG: "bytes", "text": ""} if kind is bytes and not value else value
    if isinstance(value, Tensor):
        # a subclass, or attributes of a tensor, could not be loaded again
        plain = value.detach()
        if is_piece(plain):
            return place(plain)
        plain = plain if type(plain) is Tensor else plain.as_subclass(Tensor)
        return place(plain.contiguous() if _is_expanded(plain) else plain)
    if kind in (dict, OrderedDict, Counter):
        return _plain_dict(value, depth, place)
    if kind in (list, tuple):
        return kind(_plain_items(value, depth, place))
    if isinstance(value, _TORCH_ATOMS):
        return value
    return _tagged(value, depth, place)


def _is_expanded(tensor: Tensor) -> bool:
    """Whether it is larger than its memory, which readers take for a trap."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.nbytes > tensor.untyped_storage().nbytes()


def _plain_items(items: Iterable[Any], depth: int, place: Place) -> Iterator[Any]:
    """The values of a sequence; an error is told where it is, from the inside out."""
    _require_room(depth)
    number = -1
    try:
        for number, item in enumerate(items):  # noqa: B007  also told below
            yield item if type(item) in _SIMPLE else _plain(item, depth - 1, place)
    except _UnsavableError as error:
        error.path = f"[{number}]{error.path}"
        raise


def _require_room(depth: int) -> None:
    if not depth:
        raise _UnsavableError(
            f"is nested more than {DEEPEST} levels deep, or contains itself: save what it stands "
            f"for instead."
        )


def _plain_dict(value: dict[Any, Any], depth: int, place: Place) -> Any:
    _require_room(depth)
    plain: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
    key = None
    for key in value:
        if type(key) is not str and not _is_plain_key(key):
            raise _UnsavableError(
                f"has a key of type {type(key).__name__}, but a checkpoint takes only plain keys "
                f"(str, int, ...): convert it."
            )
    try:
        for key, item in value.items():
            plain[key] = item if type(item) in _SIMPLE else _plain(item, depth - 1, place)
    except _UnsavableError as error:
        error.path = f"[{key!r}]{error.path}"
        raise
    if isinstance(value, OrderedDict):
        metadata = getattr(value, "_metadata", None)  # module state dicts carry versions in it
        if metadata is not None:
            vars(plain)["_metadata"] = _plain(metadata, depth - 1, place)
        return plain
    return Counter(plain) if isinstance(value, Counter) else plain


def _is_plain_key(key: Any) -> bool:
    if type(key) is tuple:
        return all(map(_is_plain_key, key))
    return type(key) in _ATOMS and not (type(key) is bytes and key == b"")


def _tagged(value: Any, depth: int, place: Place) -> Any:
    if isinstance(value, np.generic):
        return _plain_scalar(value, depth, place)
    if isinstance(value, Enum) and isinstance(value.value, _ATOMS):
        return _plain(value.value, depth, place)
    if type(value) in (np.ndarray, np.memmap) and value.dtype.name in _ARRAY_TYPES:
        native = np.array(value, dtype=value.dtype.newbyteorder("="))
        return {TAG: "ndarray", "data": torch.from_numpy(native), "dtype": str(value.dtype)}
    if isinstance(value, (set, frozenset, deque)):
        items = list(_plain_items(value, depth, place))
        if type(value) is set:
            return set(items) if all(map(_is_plain_key, items)) else {TAG: "set", "items": items}
        if isinstance(value, deque):
            return {TAG: "deque", "items": items, "maxlen": value.maxlen}
        return {TAG: "frozenset", "items": items}
    if isinstance(value, PurePath):
        return {TAG: "path", "path": value.as_posix()}
    if isinstance(value, datetime.timedelta):
        return {TAG: "timedelta", "parts": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, datetime.datetime):
        return {TAG: "datetime", "iso": value.isoformat()}
    if isinstance(value, range):
        return {TAG: "range", "parts": [value.start, value.stop, value.step]}
    bases: tuple[Any, ...] = (list, tuple, Mapping, str, int, float)
    for base in bases:  # named tuples and other subclasses
        if isinstance(value, base):
            return _plain(dict(value) if base is Mapping else base(value), depth, place)
    raise _UnsavableError(
        f"is a {type(value).__module__}.{type(value).__qualname__}, but a checkpoint holds only "
        f"tensors and plain types (numbers, strings, lists, dicts, ...): save what describes it "
        f"instead, and rebuild it when the state is loaded."
    )


def _plain_scalar(value: np.generic[Any], depth: int, place: Place) -> Any:
    item = value.item()
    if isinstance(item, np.generic):  # of more digits than Python's own types have
        item = complex(value) if isinstance(value, np.complexfloating) else float(value)
    return _plain(item, depth, place)


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
