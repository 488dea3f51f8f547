"""Compares two nested states leaf by leaf."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Keys = tuple[Any, ...]


class Missing:
    """Stands for a value that only the other state has."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


@dataclass(frozen=True)
class Difference:
    """A leaf in which two states differ.

    Attributes:
        path: keys and indices, joined by ``/``.
        first: value in the first state, or ``MISSING``.
        second: value in the second state, or ``MISSING``.
        num_different: number of elements that differ, for tensors of equal shape and dtype.
        largest: their largest absolute difference; NaN if an element is NaN.
    """

    path: str
    first: Any
    second: Any
    num_different: int | None = None
    largest: float | None = None


def compare(first: Any, second: Any, ignore: Iterable[str] = ()) -> Iterator[Difference]:
    """Yield each leaf in which two nested states differ.

    Args:
        first: tensors, plain types, and containers of them.
        second: likewise.
        ignore: ``fnmatch`` patterns of paths to leave out, with everything below them.

    >>> list(compare({"a": [1, 2], "b": 0}, {"a": [1, 3], "b": 1}, ignore=["b"]))
    [Difference(path='a/1', first=2, second=3, num_different=None, largest=None)]
    """
    patterns = tuple(ignore)
    for keys, left, right in differing_leaves(first, second):
        paths = ["/".join(map(str, keys[:end])) for end in range(1, len(keys) + 1)]
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns for path in paths):
            continue  # the leaf or a container around it is ignored
        path = paths[-1] if paths else ""
        if isinstance(left, Tensor) and isinstance(right, Tensor) and _is_like(left, right):
            yield Difference(path, left, right, *_distance(left, right))
        else:
            yield Difference(path, left, right)


def differing_leaves(first: Any, second: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any, Any]]:
    """Yield keys and both values of each leaf in which two nested states differ.

    Tensors and arrays are compared bit for bit, with their types; NaN equals NaN.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        # by their repr, which tells 1 from True and finds NaN
        left, right = ({repr(key): (key, side[key]) for key in side} for side in (first, second))
        for text, (key, _) in {**left, **right}.items():
            pair = [side.get(text, (key, MISSING))[1] for side in (left, right)]
            yield from differing_leaves(pair[0], pair[1], (*keys, key))
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        for index in range(max(len(first), len(second))):
            pair = [seq[index] if index < len(seq) else MISSING for seq in (first, second)]
            yield from differing_leaves(pair[0], pair[1], (*keys, index))
    elif _is_sparse(first) and _is_sparse(second):
        yield from differing_leaves(_parts(first), _parts(second), keys)
    elif not _is_same(first, second):
        yield keys, first, second


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def _parts(sparse: Tensor) -> dict[str, Any]:
    """The parts of a sparse tensor, which as a dense one could exceed the memory."""
    if sparse.layout is torch.sparse_coo:
        names: tuple[str, ...] = ("_indices", "_values")  # the tensor may be uncoalesced
    elif sparse.layout in (torch.sparse_csr, torch.sparse_bsr):
        names = ("crow_indices", "col_indices", "values")
    else:
        names = ("ccol_indices", "row_indices", "values")
    parts = {name.lstrip("_"): getattr(sparse, name)() for name in names}
    return {"size": tuple(sparse.shape), **parts}


def _is_same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _is_like(first, second) and not bool(_different_elements(first, second).any())
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second, equal_nan=True)
    if type(first) is not type(second):
        return False
    if isinstance(first, (float, complex)):  # exact, and distinguishes -0.0 from 0.0
        return repr(first) == repr(second)
    if isinstance(first, (set, frozenset)):
        return sorted(map(repr, first)) == sorted(map(repr, second))
    return bool(first == second)


def _is_like(first: Tensor, second: Tensor) -> bool:
    same = (first.dtype, first.shape) == (second.dtype, second.shape)
    return same and first.is_meta == second.is_meta and _is_sparse(first) == _is_sparse(second)


def _different_elements(first: Tensor, second: Tensor) -> Tensor:
    """Which elements differ in their bits, so that NaN equals NaN and -0.0 differs from 0.0."""
    if first.is_meta or not first.numel():
        return torch.zeros(0, dtype=torch.bool)
    return (_bits(first) != _bits(second)).any(dim=1)


def _bits(tensor: Tensor) -> Tensor:
    """The elements as rows of bytes."""
    plain = _flat(tensor)
    if plain.stride() != (1,):  # torch calls one element contiguous, whatever its stride
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).reshape(plain.numel(), -1)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)


def _distance(first: Tensor, second: Tensor) -> tuple[int, float]:
    """The number of elements that differ, and their largest absolute difference."""
    differ = _different_elements(first, second)
    sides = [_flat(tensor)[differ] for tensor in (first, second)]
    wide = torch.complex128 if first.is_complex() else torch.float64
    gaps = (sides[0].to(wide) - sides[1].to(wide)).abs()
    return len(gaps), float(gaps.max())  # NaN if there is one
