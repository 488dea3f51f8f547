"""The plain values and tensors that a file holds as they are, and the keys among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitkit.core.tree import ATOMS
from fitkit.distributed.dtensor import is_dtensor

MOST_BITS = 2039  # torch reads integers of up to 255 bytes
_MOST_KEY_PARTS = 100  # reading refuses keys that take long to hash
_UNCHANGED = frozenset(ATOMS) - {bytes, int}
_SMALL_INTS = range(-(2**63), 2**63)


def is_unchanged(value: Any) -> bool:
    """Whether a value is saved as it is, without looking closer."""
    return type(value) in _UNCHANGED or (type(value) is int and value in _SMALL_INTS)


def problem_of_key(key: Any) -> str | None:
    """Why a value cannot be a key in a file, to follow "a key"; ``None`` if it can.

    >>> problem_of_key(("a", 1)), problem_of_key(("a", object())), problem_of_key(2**3000)
    (None, 'of type tuple', 'with an integer of 3001 bits')
    """
    parts = [key]
    for part in parts:  # which grows
        if type(part) is tuple:
            parts += part
        elif type(part) not in ATOMS or (type(part) is bytes and not part):
            return f"of type {type(key).__name__}"
        elif type(part) is int and part.bit_length() > MOST_BITS:
            return f"with an integer of {part.bit_length()} bits"
        if len(parts) > _MOST_KEY_PARTS:
            return f"of more than {_MOST_KEY_PARTS} values"
    return None


def plain_tensor(tensor: Tensor) -> Tensor:
    """The tensor without its subclass and attributes, which could not be loaded again."""
    if type(tensor) is Tensor:
        plain = tensor
    elif is_dtensor(tensor):
        return tensor
    else:
        plain = tensor.as_subclass(Tensor)
    if plain.layout is not torch.strided or plain.is_contiguous():
        return plain
    is_larger = plain.nbytes > plain.untyped_storage().nbytes()
    return plain.contiguous() if is_larger else plain  # safe_load refuses one that is larger
