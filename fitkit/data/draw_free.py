"""Whether fetching a batch can draw random numbers, as far as it shows without running it."""

from __future__ import annotations

import dis
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
)

# What a method may do that is known not to draw: read, index, compute with operators, and return.
# It calls nothing and reads no global name. Names of other Python versions are simply not here.
_HARMLESS = frozenset(
    [
        "BINARY_OP",
        "BINARY_SLICE",
        "BINARY_SUBSCR",
        "BUILD_CONST_KEY_MAP",
        "BUILD_LIST",
        "BUILD_MAP",
        "BUILD_SLICE",
        "BUILD_TUPLE",
        "CACHE",
        "COPY",
        "EXTENDED_ARG",
        "LOAD_ATTR",
        "LOAD_CONST",
        "LOAD_FAST",
        "LOAD_FAST_BORROW",
        "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
        "LOAD_FAST_LOAD_FAST",
        "LOAD_SMALL_INT",
        "NOP",
        "NOT_TAKEN",
        "POP_TOP",
        "RESUME",
        "RETURN_CONST",
        "RETURN_VALUE",
        "ROT_TWO",
        "STORE_FAST",
        "STORE_FAST_LOAD_FAST",
        "STORE_FAST_STORE_FAST",
        "SWAP",
        "UNPACK_SEQUENCE",
    ]
)
_PLAIN = (Tensor, int, float, bool, str, torch.dtype, type(None))


def is_draw_free(dataset: Any) -> bool:
    """Whether fetching from ``dataset`` cannot draw; ``False`` where that is not certain.

    A data set of the user's own is certain if the method that fetches only indexes tensors and
    arrays that the data set holds, and calls nothing.
    """
    if type(dataset) is Subset:
        return is_draw_free(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(is_draw_free(part) for part in dataset.datasets)
    if type(dataset) is TensorDataset:
        return True
    name = "__getitems__" if fetches_batches(dataset) else "__getitem__"
    held = getattr(dataset, "__dict__", {})
    owner: Any = type(dataset)
    is_usual = name not in held and owner.__getattribute__ is object.__getattribute__
    return is_usual and _only_indexes(getattr(owner, name, None), held, owner)


def collates_draw_free(collate: Callable[[Any], Any]) -> bool:
    """Whether ``collate`` cannot draw; ``False`` where that is not certain."""
    return collate in (default_collate, default_convert) or _only_indexes(collate, {}, object)


def fetches_batches(dataset: Any) -> bool:
    """Whether ``dataset`` fetches a whole batch at once; ``Subset`` only passes the call on."""
    if type(dataset) is Subset:
        return fetches_batches(dataset.dataset)
    return callable(getattr(dataset, "__getitems__", None))


def _only_indexes(function: Any, held: Mapping[str, Any], owner: type) -> bool:
    if type(function) is not FunctionType or not _is_harmless(function.__code__):
        return False
    # an attribute of the class may be a property, which is code again
    return all(
        name in held and _is_plain(held[name]) and not hasattr(owner, name)
        for name in function.__code__.co_names
    )


@lru_cache
def _is_harmless(code: CodeType) -> bool:
    if code.co_freevars or code.co_cellvars:
        return False
    return all(instruction.opname in _HARMLESS for instruction in dis.get_instructions(code))


def _is_plain(value: Any) -> bool:
    is_array = type(value) is np.ndarray and not value.dtype.hasobject
    return is_array or type(value) in _PLAIN
