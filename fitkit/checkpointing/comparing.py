"""Two states compared, leaf by leaf."""

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
    """What stands for a value where there is none."""

    def __repr__(self) -> str:
        return "missing"


MISSING = Missing()


@dataclass(frozen=True)
class Difference:
    """A leaf at which two states differ.

    Attributes:
        path: the keys that lead to it, joined by ``/``.
        first: the value in the first; ``MISSING`` if there is none.
        second: the value in the second.
        num_different: of two tensors of one shape and type, how many elements differ.
        largest: the largest absolute difference between their elements; NaN if one of them is NaN.
    """

    path: str
    first: Any
    second: Any
    num_different: int | None = None
    largest: float | None = None


def compare(first: Any, second: Any, ignore: Iterable[str] = ()) -> Iterator[Difference]:
    """Each leaf at which two nestings differ.

    Args:
        first: tensors, plain types, and containers of them.
        second: likewise.
        ignore: paths to leave out, with everything below them; patterns as of ``fnmatch``.

    >>> list(compare({"a": [1, 2], "b": 0}, {"a": [1, 3], "b": 1}, ignore=["b"]))
    [Difference(path='a/1', first=2, second=3, num_different=None, largest=None)]
    """
    patterns = tuple(ignore)
    for keys, one, other in differing_leaves(first, second):
        if any(_is_meant(keys, pattern) for pattern in patterns):
            continue
        path = "/".join(map(str, keys))
        if isinstance(one, Tensor) and isinstance(other, Tensor) and _is_like(one, other):
            yield Difference(path, one, other, *_distance(one, other))
        else:
            yield Difference(path, one, other)


def _is_meant(keys: Keys, pattern: str) -> bool:
    """Whether a pattern means a leaf, or a container that it is in."""
    starts = ("/".join(map(str, keys[:end])) for end in range(1, len(keys) + 1))
    return any(fnmatch.fnmatchcase(start, pattern) for start in starts)


def differing_leaves(first: Any, second: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any, Any]]:
    """Each leaf at which two nestings differ: the keys that lead to it, and both values.

    Tensors and arrays are compared bit for bit, with their types; NaN equals NaN.

    Args:
        first: a nesting of mappings, lists and tuples.
        second: another one.
        keys: what led here.
    """
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        pairs, others = _by_text(first), _by_text(second)
        for text, (key, _) in {**pairs, **others}.items():
            one, other = (side.get(text, (key, MISSING))[1] for side in (pairs, others))
            yield from differing_leaves(one, other, (*keys, key))
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        for index in range(max(len(first), len(second))):
            pair = [seq[index] if index < len(seq) else MISSING for seq in (first, second)]
            yield from differing_leaves(pair[0], pair[1], (*keys, index))
    elif _is_sparse(first) and _is_sparse(second):
        yield from differing_leaves(_parts(first), _parts(second), keys)
    elif not _is_same(first, second):
        yield keys, first, second


def _by_text(mapping: Mapping[Any, Any]) -> dict[str, tuple[Any, Any]]:
    """Pairs by what their keys look like, which tells ``1`` from ``True`` and knows NaN again."""
    return {repr(key): (key, value) for key, value in mapping.items()}


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is not torch.strided


def _parts(sparse: Tensor) -> dict[str, Any]:
    """What a sparse tensor consists of: as a dense one it could be larger than the memory."""
    if sparse.layout is torch.sparse_coo:
        names: tuple[str, ...] = ("_indices", "_values")  # also if not coalesced
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
    if isinstance(first, (float, complex)):  # exact, and tells -0.0 from 0.0
        return repr(first) == repr(second)
    if isinstance(first, (set, frozenset)):
        return sorted(map(repr, first)) == sorted(map(repr, second))
    return bool(first == second)


def _is_like(first: Tensor, second: Tensor) -> bool:
    same = (first.dtype, first.shape) == (second.dtype, second.shape)
    return same and first.is_meta == second.is_meta and _is_sparse(first) == _is_sparse(second)


def _different_elements(first: Tensor, second: Tensor) -> Tensor:
    """Which elements differ in their bits, so that NaN and the sign of zero count too."""
    if first.is_meta or not first.numel():
        return torch.zeros(0, dtype=torch.bool)
    return (_bits(first) != _bits(second)).any(dim=1)


def _bits(tensor: Tensor) -> Tensor:
    """The elements as rows of bytes."""
    plain = _flat(tensor)
    if plain.stride() != (1,):  # torch calls one element of any stride contiguous
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).reshape(plain.numel(), -1)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().resolve_conj().resolve_neg().reshape(-1)


def _distance(first: Tensor, second: Tensor) -> tuple[int, float]:
    """How many elements differ, and by how much at most."""
    differ = _different_elements(first, second)
    sides = [_flat(tensor)[differ] for tensor in (first, second)]
    wide = torch.complex128 if first.is_complex() else torch.float64
    gaps = (sides[0].to(wide) - sides[1].to(wide)).abs()
    return len(gaps), float(gaps.max())  # NaN if there is one
