"""Skeleton: a state with descriptions in the place of tensors that lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.plain import TAG

_PIECE = "piece"


def take_out(content: Any, takes: Callable[[Any], bool]) -> tuple[Any, dict[str, Tensor]]:
    """``content`` with descriptions for the tensors that ``takes`` wants, and these by name."""
    found: dict[str, Tensor] = {}

    def described(value: Any, path: str) -> Any:
        if not takes(value):
            return value
        while path in found:  # keys of several types may read the same
            path += "'"
        found[path] = value
        return {
            TAG: _PIECE,
            "key": path,
            "shape": list(value.shape),
            "dtype": dtype_name(value.dtype),
        }

    return _mapped(described, content, ""), found


def descriptions(content: Any) -> dict[str, dict[str, Any]]:
    """The descriptions in ``content``, by the names of their tensors."""
    found: dict[str, dict[str, Any]] = {}

    def note(value: Any, _: str) -> Any:
        if is_description(value):
            found[value["key"]] = value
        return value

    _mapped(note, content, "")
    return found


def put_in(content: Any, tensor_of: Callable[[dict[str, Any]], Tensor]) -> Any:
    """``content`` with a tensor for each description."""

    def tensor(value: Any, _: str) -> Any:
        return tensor_of(value) if is_description(value) else value

    return _mapped(tensor, content, "")


def is_description(value: Any) -> bool:
    """Whether ``value`` stands for a tensor that lies in the folder."""
    return (
        type(value) is dict
        and value.get(TAG) == _PIECE
        and isinstance(value.get("key"), str)
        and isinstance(value.get("shape"), list)
        and isinstance(dtype_of(value.get("dtype")), torch.dtype)
        and all(type(size) is int and size >= 0 for size in value["shape"])
        and prod(max(size, 1) for size in value["shape"]) < 2**56  # else strides overflow
    )


def _mapped(function: Callable[[Any, str], Any], value: Any, path: str) -> Any:
    if isinstance(value, dict) and not is_description(value):
        mapped = {
            key: _mapped(function, item, f"{path}.{key}" if path else str(key))
            for key, item in value.items()
        }
        if type(value) is dict:
            return mapped
        ordered = type(value)(mapped)
        vars(ordered).update(vars(value))
        return ordered
    if type(value) in (list, tuple):
        return type(value)(
            _mapped(function, item, f"{path}.{number}") for number, item in enumerate(value)
        )
    return function(value, path)


def dtype_of(name: Any) -> torch.dtype | None:
    """The type of that name."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    return found if isinstance(found, torch.dtype) else None


def dtype_name(dtype: torch.dtype) -> str:
    """What ``dtype_of`` finds it by, such as ``"float32"``."""
    return str(dtype).removeprefix("torch.")
