"""Read the arguments of a pickle's operations."""

from __future__ import annotations

import struct
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from array import array

from fitkit.checkpointing.storage.pickle_values import LARGE, LargeInt

_MAX_NAME = 1000  # torch searches its own message for an unknown name with slow patterns
_FLOAT, _read_float = ord("G"), struct.Struct(">d").unpack_from
_MAX_COLUMN = 1000  # pickle appends so many values to a list at once


class PickleReader:
    """A position in a pickle.

    Args:
        data: the pickle.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """The next bytes; if there are fewer, the pickle has no end."""
        at = self.at
        self.at = at + size
        return self.data[at : at + size]

    def take_size(self, num_bytes: int) -> int:
        """The next bytes as a number from 0."""
        return int.from_bytes(self.take(num_bytes), "little")

    def take_long(self) -> int:
        """A number of any size."""
        number = int.from_bytes(self.take(self.take_size(1)), "little", signed=True)
        return number if -LARGE < number < LARGE else LargeInt(number)

    def take_global(self) -> str:
        """The name of a class or function as torch reads it: Python 3's for those of Python 2."""
        lines = []
        for _ in range(2):
            end = self.data.index(b"\n", self.at, self.at + _MAX_NAME)
            lines.append(self.data[self.at : end].decode())
            self.at = end + 1
        module, name = lines
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return f"{module}.{name}"


def read_floats(data: bytes, at: int) -> list[float]:
    """The floats of a column that begins at ``at``: operations of nine bytes in a row."""
    if data[at + 9] != _FLOAT:
        return [_read_float(data, at + 1)[0]]
    operations = data[at : at + 9 * _MAX_COLUMN : 9]
    number = len(operations) - len(operations.lstrip(bytes([_FLOAT])))
    words = bytearray(8 * number)
    for place in range(8):  # one by one they would take three times as long
        words[place::8] = data[at + 1 + place : at + 9 * number : 9]
    floats = array("d", bytes(words))
    if sys.byteorder == "little":
        floats.byteswap()
    return floats.tolist()
