"""NumberList: a list of numbers of which most is pickled already when it is saved."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

from fitkit.checkpointing.format.plain_values import is_unchanged

_CHUNK = 1000  # numbers that are pickled once
_PROTOCOL = 2
# what pickle writes before the items of a list and after them
_BEFORE_ITEMS, _AFTER_ITEMS = len(b"\x80\2]q\0"), len(b".")


class PickledList:
    """The pickle of a list of numbers, which is written as it is.

    Attributes:
        pieces: operations that make the list, to be written one after the other.
    """

    __slots__ = ("pieces",)

    def __init__(self, pieces: tuple[bytes, ...]) -> None:
        self.pieces = pieces

    def __reduce__(self) -> Any:
        """Only ``JoinedPickler`` can write it."""
        raise TypeError("a PickledList can be saved only as a value in plain dicts")


_Number = TypeVar("_Number", int, float)


class NumberList(list[_Number]):
    """A list to which numbers are appended, and which a save need not go through each time."""

    # A tuple, so that copies of the list cannot change it.
    _chunks: tuple[bytes, ...] = ()

    def pickled(self) -> PickledList | list[_Number]:
        """Its present content; as a list if an item is something else than a number."""
        begin = _CHUNK * len(self._chunks)
        tail = self[begin:]
        if not all(type(item) in (int, float) and is_unchanged(item) for item in tail):
            return list(self)
        for first in range(0, len(tail) - _CHUNK + 1, _CHUNK):
            self._chunks += (_pickle_items(tail[first : first + _CHUNK]),)
        rest = _pickle_items(self[_CHUNK * len(self._chunks) :])
        return PickledList((b"]", *self._chunks, rest))


def _pickle_items(numbers: Iterable[float]) -> bytes:
    """Operations that append ``numbers`` to the list on the stack."""
    return pickle.dumps(list(numbers), _PROTOCOL)[_BEFORE_ITEMS:-_AFTER_ITEMS]


def _forgetting(name: str) -> Callable[..., Any]:
    """The method of lists that changes more than the end, so that nothing is pickled yet."""
    method = getattr(list, name)

    @wraps(method)
    def changed(self: NumberList[Any], *args: Any, **options: Any) -> Any:
        self._chunks = ()
        return method(self, *args, **options)

    return changed


for _name in (
    "__init__", "__setitem__", "__delitem__", "__imul__",
    "clear", "insert", "pop", "remove", "reverse", "sort",
):  # fmt: skip
    setattr(NumberList, _name, _forgetting(_name))
