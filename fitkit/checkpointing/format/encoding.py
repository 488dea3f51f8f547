"""Encode values as tensors and plain types, the only things that a checkpoint may hold.

``torch.load(weights_only=True)`` refuses NumPy scalars, ``deque``, ``Path`` and other types that
callbacks like to keep. Those are written as tagged dicts and decoded to what they were.
"""

from __future__ import annotations

import datetime
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PosixPath, PurePath, WindowsPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fitkit.checkpointing.format import exact_types
from fitkit.checkpointing.format.growing_list import PickledList
from fitkit.checkpointing.format.plain_values import (
    MOST_BITS,
    is_unchanged,
    plain_tensor,
    problem_of_key,
)
from fitkit.checkpointing.format.tags import TAG
from fitkit.core.errors import CheckpointError, as_checkpoint_error
from fitkit.core.limits import MAX_DEPTH
from fitkit.core.tree import ATOMS, TensorMap
from fitkit.distributed.dtensor import is_dtensor

_KEPT = frozenset(  # tagged as they are
    (np.ndarray, set, frozenset, deque, PosixPath, WindowsPath, datetime.timedelta, range)
)
_TORCH_ATOMS = (torch.dtype, torch.device, torch.Size)


def encode(
    value: Any,
    name: str = "state",
    tensor_map: TensorMap = lambda tensor: tensor,
    *,
    keep_types: bool = False,
) -> Any:
    """``value`` with every leaf a tensor or a plain type.

    Args:
        value: what is to be saved; not changed.
        name: what it is called in the error.
        tensor_map: gives what is saved for each tensor; by default the live tensor itself.
        keep_types: refuse what ``decode`` would give back with another type. Otherwise subclasses
            of plain types, enums and NumPy scalars become plain.

    Raises:
        CheckpointError: a leaf is of another type, or the nesting is too deep; the message says
            where.
    """
    try:
        return _encode(value, MAX_DEPTH, _Options(tensor_map, keep_types))
    except _UnsavableError as error:
        raise CheckpointError(f"{name}{error.path} {error}") from None


class _Options(NamedTuple):
    tensor_map: TensorMap
    keep_types: bool


class _UnsavableError(Exception):
    """Why a leaf cannot be saved; ``path`` grows as the error leaves containers."""

    path = ""


def _encode(value: Any, depth: int, options: _Options) -> Any:
    """Encode ``value``, which may be nested ``depth`` more levels."""
    kind = type(value)
    if kind is int and value.bit_length() > MOST_BITS:
        raise _UnsavableError(
            f"is an integer of {value.bit_length()} bits, but a checkpoint takes {MOST_BITS}: "
            f"save it as text, such as hex(number)."
        )
    if kind in ATOMS:
        # empty bytes are pickled as a call, which weights_only=True refuses
        return {TAG: "bytes", "text": ""} if kind is bytes and not value else value
    if isinstance(value, Tensor):
        is_plain = kind is Tensor or kind is nn.Parameter
        if options.keep_types and not (is_plain or is_dtensor(value)):
            raise _unsavable(value)
        return options.tensor_map(plain_tensor(value.detach()))
    if kind in (dict, OrderedDict, Counter):
        return _encode_dict(value, depth, options)
    if kind is PickledList:
        return value
    if kind in (list, tuple):
        return kind(_encode_items(value, depth, options))
    if isinstance(value, _TORCH_ATOMS):
        return value
    return (_encode_exactly if options.keep_types else _encode_tagged)(value, depth, options)


def _encode_exactly(value: Any, depth: int, options: _Options) -> Any:
    """Encode a value so that it comes back with its type."""
    try:
        found = exact_types.to_content(value)
    except exact_types.NotExactError as error:
        raise _UnsavableError(f"{error}.") from None
    if found is not None:
        tag, content = found
        return {TAG: tag, **_encode_dict(content, depth, options)}
    if type(value) not in _KEPT:
        raise _unsavable(value)
    return _encode_tagged(value, depth, options)


def _unsavable(value: Any) -> _UnsavableError:
    return _UnsavableError(
        f"is a {type(value).__module__}.{type(value).__qualname__}, but a checkpoint holds only "
        f"tensors and plain types (numbers, strings, lists, dicts, ...): save what describes it "
        f"instead, and rebuild it when the state is loaded."
    )


def _encode_items(items: Iterable[Any], depth: int, options: _Options) -> Iterator[Any]:
    _check_depth(depth)
    number = -1
    try:
        for number, item in enumerate(items):  # noqa: B007  also used in the error
            yield item if is_unchanged(item) else _encode(item, depth - 1, options)
    except _UnsavableError as error:
        error.path = f"[{number}]{error.path}"
        raise


def _encode_dict(value: dict[Any, Any], depth: int, options: _Options) -> Any:
    _check_depth(depth)
    encoded: Any = OrderedDict() if isinstance(value, OrderedDict) else {}
    key = None
    for key in value:
        problem = None if type(key) is str else problem_of_key(key)
        if problem is not None:
            raise _UnsavableError(
                f"has a key {problem}, but a checkpoint takes only short plain keys (str, int, "
                f"...): convert it."
            )
    try:
        for key, item in value.items():
            encoded[key] = item if is_unchanged(item) else _encode(item, depth - 1, options)
    except _UnsavableError as error:
        error.path = f"[{key!r}]{error.path}"
        raise
    if isinstance(value, OrderedDict):
        metadata = getattr(value, "_metadata", None)  # versions of modules in a state dict
        if metadata is not None:
            vars(encoded)["_metadata"] = _encode(metadata, depth - 1, options)
        return encoded
    return Counter(encoded) if isinstance(value, Counter) else encoded


def _check_depth(depth: int) -> None:
    if not depth:
        raise _UnsavableError(
            f"is nested more than {MAX_DEPTH} levels deep, or contains itself: save a flatter "
            f"description of it instead."
        )


def _encode_tagged(value: Any, depth: int, options: _Options) -> Any:
    if isinstance(value, np.generic):
        return _encode(_python_number(value), depth, options)
    if isinstance(value, Enum) and isinstance(value.value, ATOMS):
        return _encode(value.value, depth, options)
    if type(value) in (np.ndarray, np.memmap) and exact_types.is_storable(value.dtype):
        native = np.array(value, dtype=value.dtype.newbyteorder("="))
        return {TAG: "ndarray", "data": torch.from_numpy(native), "dtype": str(value.dtype)}
    if isinstance(value, (set, frozenset, deque)):
        items = list(_encode_items(value, depth, options))
        if type(value) is set:
            is_plain = all(problem_of_key(item) is None for item in items)
            return set(items) if is_plain else {TAG: "set", "items": items}
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
        parts = [value.start, value.stop, value.step]
        return {TAG: "range", "parts": list(_encode_items(parts, depth, options))}
    bases: tuple[Any, ...] = (list, tuple, Mapping, str, int, float)
    for base in bases:  # named tuples and other subclasses
        if isinstance(value, base):
            return _encode(dict(value) if base is Mapping else base(value), depth, options)
    raise _unsavable(value)


def _python_number(value: np.generic[Any]) -> Any:
    item = value.item()
    if isinstance(item, np.generic):  # more digits than Python's own types have
        return complex(value) if isinstance(value, np.complexfloating) else float(value)
    return item


_DECODERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ndarray": lambda saved: _decode_array(saved["data"], saved["dtype"]),
    "set": lambda saved: set(decode(saved["items"])),
    "bytes": lambda saved: saved["text"].encode(),
    "deque": lambda saved: deque(decode(saved["items"]), saved["maxlen"]),
    "frozenset": lambda saved: frozenset(decode(saved["items"])),
    "path": lambda saved: Path(saved["path"]),
    "timedelta": lambda saved: datetime.timedelta(*saved["parts"]),
    "datetime": lambda saved: datetime.datetime.fromisoformat(saved["iso"]),
    "range": lambda saved: range(*saved["parts"]),
}


def _decode_array(data: Tensor, name: str) -> Any:
    dtype = np.dtype(name)
    if not exact_types.is_storable(dtype):
        raise ValueError(f"an array of {name!r}")
    return data.cpu().numpy().astype(dtype)


def decode(value: Any) -> Any:
    """The value that ``encode`` was given.

    Raises:
        CheckpointError: a tag is unknown, or its content does not fit.
    """
    if type(value) is dict:
        if TAG in value:
            return _decode_tagged(value, value[TAG])
        return {key: decode(item) for key, item in value.items()}
    if type(value) is OrderedDict:
        ordered = OrderedDict((key, decode(item)) for key, item in value.items())
        vars(ordered).update(vars(value))
        return ordered
    if type(value) is Counter:
        return Counter({key: decode(item) for key, item in value.items()})
    if type(value) in (list, tuple, set):
        return type(value)(decode(item) for item in value)
    return value


def _decode_tagged(value: dict[str, Any], tag: Any) -> Any:
    decoders = {**exact_types.FROM_CONTENT, **_DECODERS}
    decoder = decoders.get(tag) if isinstance(tag, str) else None
    if decoder is None:
        raise CheckpointError(f"the checkpoint holds a value of the unknown kind {tag!r}.")
    with as_checkpoint_error(f"the checkpoint holds a {tag} that cannot be rebuilt"):
        if tag in exact_types.FROM_CONTENT:
            value = {key: decode(item) for key, item in value.items()}
        return decoder(value)
