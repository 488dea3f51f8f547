"""Stubs in the place of tensors that are stored in a shard folder: name, shape and type."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from fitkit.checkpointing.format.tags import STUB, TAG
from fitkit.core.formatting import dtype_name
from fitkit.core.tree import rebuild_mapping


def extract_tensors(
    content: Any, is_extracted: Callable[[Any], bool]
) -> tuple[Any, dict[str, Tensor]]:
    """``content`` with stubs for the tensors that ``is_extracted`` selects, and these by name."""
    tensors: dict[str, Tensor] = {}

    def replace(value: Any, name: str) -> Any:
        if not is_extracted(value):
            return value
        while name in tensors:  # keys of several types may read the same
            name += "'"
        tensors[name] = value
        shape, dtype = list(value.shape), dtype_name(value.dtype)
        return {TAG: STUB, "key": name, "shape": shape, "dtype": dtype}

    return _map_leaves(replace, content, ""), tensors


def find_stubs(content: Any) -> dict[str, dict[str, Any]]:
    """The stubs in ``content``, by the names of their tensors."""
    stubs: dict[str, dict[str, Any]] = {}

    def collect(leaf: Any, _: str) -> None:
        if is_stub(leaf):
            stubs[leaf["key"]] = leaf

    _map_leaves(collect, content, "")
    return stubs


def insert_tensors(content: Any, tensor_of: Callable[[dict[str, Any]], Tensor]) -> Any:
    """``content`` with the tensor that ``tensor_of`` gives in the place of each stub."""
    return _map_leaves(lambda leaf, _: tensor_of(leaf) if is_stub(leaf) else leaf, content, "")


def is_stub(value: Any) -> bool:
    """Whether ``value`` is a valid stub."""
    return (
        type(value) is dict
        and value.get(TAG) == STUB
        and isinstance(value.get("key"), str)
        and isinstance(value.get("shape"), list)
        and dtype_from_name(value.get("dtype")) is not None
        and all(type(size) is int and size >= 0 for size in value["shape"])
        and prod(max(size, 1) for size in value["shape"]) < 2**56  # else strides overflow
    )


def _map_leaves(function: Callable[[Any, str], Any], value: Any, name: str) -> Any:
    if isinstance(value, dict) and not is_stub(value):
        mapped = {
            key: _map_leaves(function, item, f"{name}.{key}" if name else str(key))
            for key, item in value.items()
        }
        return mapped if type(value) is dict else rebuild_mapping(value, mapped)
    if type(value) in (list, tuple):
        items = enumerate(value)
        return type(value)(_map_leaves(function, it, f"{name}.{number}") for number, it in items)
    return function(value, name)


def dtype_from_name(name: Any) -> torch.dtype | None:
    """The torch type called ``name``, if there is one."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    return found if isinstance(found, torch.dtype) else None
