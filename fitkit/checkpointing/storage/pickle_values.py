"""Stand-ins for what a pickle describes, and a measure of how far a walk over them goes.

A number stands for itself, a string for its bytes, the name of a global is a str, lists and tuples
are themselves, and ``None`` stands for every other value without parts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from fitkit.core.limits import MAX_DEPTH

_MAX_ENCODED_DEPTH = 2 * MAX_DEPTH + 10  # a tagged value takes two levels in a file


class TrapError(ValueError):
    """What the file describes would exhaust memory, time or the stack."""


class PickleChecks(Protocol):
    """What a machine asks about what the pickle does; each raises if it may not do that."""

    def name(self, name: str) -> str:
        """The stand-in for a class or function."""

    def call(self, function: Any, arguments: Any) -> Any:
        """The stand-in for what a call returns."""

    def load_storage(self, description: Any) -> Any:
        """The stand-in for the memory of tensors."""

    def check_keys(self, keys: Sequence[Any], target: Any) -> None:
        """Check that ``keys`` can be added to a dict."""

    def spend(self, steps: int) -> None:
        """Count work that the number of operations does not bound."""


class LargeInt(int):
    """A number from ``LARGE`` on, which may have the hash of many others."""

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return self.bit_length() // 8


class LongText(bytes):
    """Text of more than ``LONG`` bytes, which takes memory each time that it is printed."""

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return len(self)


LARGE, LONG = 2**60, 127
# No more than two of them have one hash; that of text differs in each process.
HARMLESS_KEYS = frozenset((bytes, int, bool, type(None)))
# of the types that take more than one, by the names of storages and of dtypes
ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2,
    "ComplexDouble": 16, "ComplexFloat": 8, "QInt32": 4,
}  # fmt: skip
DTYPE_BYTES = {
    "complex128": 16, "cdouble": 16, "complex64": 8, "cfloat": 8, "complex32": 4, "chalf": 4,
    "float64": 8, "double": 8, "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2,
    "int64": 8, "long": 8, "uint64": 8, "int32": 4, "int": 4, "uint32": 4, "qint32": 4,
    "int16": 2, "short": 2, "uint16": 2, "bits16": 2,
}  # fmt: skip


# of the dicts that may have attributes
METHODS = frozenset(name.encode() for kind in (OrderedDict, Counter) for name in dir(kind))


ATTRIBUTES = object()  # the key of what a dict has beside its items


class Dict(list[Any]):
    """Keys and values of a dict, in turn, and the bytes of its long keys."""

    num_bytes = 0


class Storage(NamedTuple):
    """The memory of tensors."""

    key: bytes
    kind: str
    num_elements: int
    item_bytes: int


class Sizes(tuple[int, ...]):
    """A ``torch.Size``, which is one value."""


class Tensor(list[Any]):
    """A tensor: the parts that it was made of, and the bytes of its values."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # as of a tensor

    def __init__(self, parts: Iterable[Any], num_bytes: int = 0) -> None:
        super().__init__(parts)
        self.num_bytes: int = num_bytes
        self.num_bytes += sum(one.num_bytes for one in self if type(one) is Tensor)


_CONTAINERS = frozenset((list, tuple, Dict, Tensor))
_MEASURED = _CONTAINERS | {LargeInt, LongText}
_TENSOR_VALUES = 20  # comparing or copying a tensor takes as long as that of this many numbers
_Extent = tuple[int, int, int]  # levels below, values, bytes of tensors and long text


class Walk:
    """Measures a walk that goes again into what is used again, as copying or printing does.

    The measure itself looks at each container once, which must exist as long as the ``Walk``.

    Args:
        max_values: how many values the walk may meet.
        max_bytes: how much memory all tensors and long texts that it meets may take.
    """

    def __init__(self, max_values: int, max_bytes: int) -> None:
        self._max_values, self._max_bytes = max_values, max_bytes
        self._known: dict[int, _Extent] = {}

    def measure(self, value: Any, levels_left: int = _MAX_ENCODED_DEPTH) -> _Extent:
        """How far a walk over a container or a tensor goes.

        Raises:
            TrapError: it goes too far, or down more levels than ``levels_left``.
        """
        extent = self._known.get(id(value))
        if extent is None:
            kind = type(value)
            parts = value[1::2] if kind is Dict else value  # its keys were checked
            is_whole = kind is Tensor and not value  # else its bytes are those of its parts
            own_bytes = value.num_bytes if kind is Dict or is_whole else 0
            extent = 0, len(value) + _TENSOR_VALUES * (kind is Tensor), own_bytes
            if not _MEASURED.isdisjoint(map(type, parts)):
                extent = self._sum(parts, extent, levels_left)
            self._known[id(value)] = extent
        if extent[0] > levels_left:
            raise TrapError(f"it is nested more than {MAX_DEPTH} levels deep")
        return extent

    def _sum(self, parts: Iterable[Any], own: _Extent, levels_left: int) -> _Extent:
        depth, num_values, num_bytes = own
        for part in parts:
            kind = type(part)
            if kind in _CONTAINERS:
                if not levels_left:
                    raise TrapError(f"it is nested more than {MAX_DEPTH} levels deep")
                levels, values, of_part = self.measure(part, levels_left - 1)
                num_values += values
                num_bytes += of_part
                if levels >= depth:
                    depth = levels + 1
            elif kind in _MEASURED:
                num_bytes += part.num_bytes
        if num_values > self._max_values:
            raise TrapError("what it uses many times makes it millions of values long")
        if num_bytes > self._max_bytes:
            raise TrapError("what it uses many times takes far more memory than the file has")
        return depth, num_values, num_bytes
