"""GrowingList: pickles a list of numbers of which most was pickled at an earlier save."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

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


class GrowingList:
    """The pickle of a list of numbers that grows at its end; its beginning is pickled once."""

    def __init__(self) -> None:
        self._numbers: list[float] = []  # at the last save
        self._chunks: tuple[bytes, ...] = ()

    def pickled(self, values: list[Any], is_changeable: bool) -> PickledList | list[Any]:
        """The present content ``values``; as a list if an item is something else than a number.

        Args:
            values: the list.
            is_changeable: whether it may have changed in another way than by growing at its end.
        """
        known = len(self._numbers)
        self._numbers += values[known:]
        if is_changeable and values != self._numbers:  # compared without a copy
            self._numbers, self._chunks, known = list(values), (), 0
        if not all(type(item) in (int, float) and is_unchanged(item) for item in values[known:]):
            self._numbers, self._chunks = [], ()
            return list(values)
        begin = _CHUNK * len(self._chunks)
        end = len(values) - len(values) % _CHUNK
        for first in range(begin, end, _CHUNK):
            self._chunks += (_pickle_items(values[first : first + _CHUNK]),)
        return PickledList((b"]", *self._chunks, _pickle_items(values[end:])))


def _pickle_items(numbers: Iterable[float]) -> bytes:
    """Operations that append ``numbers`` to the list on the stack."""
    return pickle.dumps(list(numbers), _PROTOCOL)[_BEFORE_ITEMS:-_AFTER_ITEMS]
