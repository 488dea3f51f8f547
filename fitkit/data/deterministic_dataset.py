"""Whether loading a batch can draw random numbers, decided without running the code."""

from __future__ import annotations

import dis
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset, default_collate, default_convert

# Operations that cannot draw: they read, index, compute with operators and return, but call nothing
# and read no globals. The names are those of all supported Python versions.
# fmt: off
_DETERMINISTIC_OPS = frozenset(
    (
        "BINARY_ADD", "BINARY_FLOOR_DIVIDE", "BINARY_MODULO", "BINARY_MULTIPLY", "BINARY_OP",
        "BINARY_SLICE", "BINARY_SUBSCR", "BINARY_SUBTRACT", "BINARY_TRUE_DIVIDE",
        "BUILD_CONST_KEY_MAP", "BUILD_LIST", "BUILD_MAP", "BUILD_SLICE", "BUILD_TUPLE", "CACHE",
        "COPY", "EXTENDED_ARG", "LOAD_ATTR", "LOAD_CONST", "LOAD_FAST", "LOAD_FAST_BORROW",
        "LOAD_FAST_BORROW_LOAD_FAST_BORROW", "LOAD_FAST_LOAD_FAST", "LOAD_SMALL_INT", "NOP",
        "NOT_TAKEN", "POP_TOP", "RESUME", "RETURN_CONST", "RETURN_VALUE", "ROT_TWO", "STORE_FAST",
        "STORE_FAST_LOAD_FAST", "STORE_FAST_STORE_FAST", "SWAP", "UNPACK_SEQUENCE",
    )
)
# fmt: on
_PLAIN = (Tensor, int, float, bool, str, torch.dtype, type(None))


def is_deterministic(dataset: Any) -> bool:
    """Whether loading from ``dataset`` cannot draw; ``False`` if that is not certain.

    It is certain for a user's dataset whose loading method only indexes tensors and arrays that are
    attributes of the dataset, and calls nothing.
    """
    if type(dataset) is Subset:
        return is_deterministic(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(is_deterministic(part) for part in dataset.datasets)
    if type(dataset) is TensorDataset:
        return True
    name = "__getitems__" if fetches_batches(dataset) else "__getitem__"
    attributes = getattr(dataset, "__dict__", {})
    cls: Any = type(dataset)
    is_usual = name not in attributes and cls.__getattribute__ is object.__getattribute__
    return is_usual and _only_indexes(getattr(cls, name, None), attributes, cls)


def is_deterministic_collate(collate: Callable[[Any], Any]) -> bool:
    """Whether ``collate`` cannot draw; ``False`` if that is not certain."""
    return collate in (default_collate, default_convert) or _only_indexes(collate, {}, object)


def fetches_batches(dataset: Any) -> bool:
    """Whether ``dataset`` loads a whole batch with ``__getitems__``; ``Subset`` only delegates."""
    if type(dataset) is Subset:
        return fetches_batches(dataset.dataset)
    return callable(getattr(dataset, "__getitems__", None))


def _only_indexes(function: Any, attributes: Mapping[str, Any], cls: type) -> bool:
    if type(function) is not FunctionType or not _has_deterministic_ops(function.__code__):
        return False
    # a class attribute could be a property, which runs code
    return all(
        name in attributes and _is_plain(attributes[name]) and not hasattr(cls, name)
        for name in function.__code__.co_names
    )


@lru_cache
def _has_deterministic_ops(code: CodeType) -> bool:
    if code.co_freevars or code.co_cellvars:
        return False
    return all(
        instruction.opname in _DETERMINISTIC_OPS for instruction in dis.get_instructions(code)
    )


def _is_plain(value: Any) -> bool:
    is_array = type(value) is np.ndarray and not value.dtype.hasobject
    return is_array or type(value) in _PLAIN
