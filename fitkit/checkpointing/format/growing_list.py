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
        self._numbers: list[float] = []  # those in ``_chunks``
        self._chunks: tuple[bytes, ...] = ()

    def pickled(self, values: list[Any]) -> PickledList | list[Any]:
        """The present content ``values``; as a list if an item is something else than a number."""
        if values[: len(self._numbers)] != self._numbers:  # the program has changed it
            self._numbers, self._chunks = [], ()
        tail = values[len(self._numbers) :]
        if not all(type(item) in (int, float) and is_unchanged(item) for item in tail):
            return list(values)
        end = len(tail) - len(tail) % _CHUNK
        for first in range(0, end, _CHUNK):
            self._chunks += (_pickle_items(tail[first : first + _CHUNK]),)
        self._numbers += tail[:end]
        return PickledList((b"]", *self._chunks, _pickle_items(tail[end:])))


def _pickle_items(numbers: Iterable[float]) -> bytes:
    """Operations that append ``numbers`` to the list on the stack."""
    return pickle.dumps(list(numbers), _PROTOCOL)[_BEFORE_ITEMS:-_AFTER_ITEMS]
