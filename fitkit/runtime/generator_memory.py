"""Where the global generators of Python and NumPy keep their states."""

from __future__ import annotations

import ctypes
import random
import sys
from typing import Any

import numpy as np

numpy_random: Any = np.random  # whose types leave some functions out

NUM_WORDS = 624  # of the Mersenne Twister, of 32 bits each
NUM_BYTES = 4 * (NUM_WORDS + 1)  # with the place of the next word
NUM_RAW = NUM_WORDS // 2 + 1  # words of 64 bits that are enough for these
NUM_FIRST = 32  # such words with which most samples do


def _bytes_at(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def memory_of_python(generator: Any) -> memoryview | None:
    """The memory of the place of the next word and of the words; ``None``: it is not there."""
    if sys.implementation.name != "cpython":
        return None
    head = object.__basicsize__
    if random.Random.__base__.__basicsize__ < head + NUM_BYTES:  # type: ignore[union-attr]
        return None
    memory = _bytes_at(id(generator) + head, NUM_BYTES)
    return memory if bytes(memory) == bytes_of_python(random.getstate()) else None


def bytes_of_python(state: Any) -> bytes:
    """What that memory holds for a state that ``random.getstate`` has returned."""
    *words, place = state[1]
    return np.array([place, *words], np.uint32).tobytes()


def memory_of_numpy(bits: Any) -> tuple[memoryview, memoryview] | None:
    """The memory of words and place, and of the left-over number; ``None``: it is not there."""
    if sys.implementation.name != "cpython" or type(bits) is not np.random.MT19937:
        return None
    memory = _bytes_at(bits.ctypes.state_address, NUM_BYTES)
    before = np.random.get_state(legacy=False)
    expected = np.array([*before["state"]["key"], before["state"]["pos"]], np.uint32)
    if bytes(memory) != expected.tobytes():
        return None
    generator: Any = numpy_random.mtrand._rand  # noqa: SLF001
    held = _bytes_at(id(generator), type(generator).__basicsize__)
    found = set(range(0, len(held) - 15, 8))
    try:
        for has_gauss, gauss in ((1, 0.123456789), (0, 0.0), (1, -98.7654321)):
            np.random.set_state({**before, "has_gauss": has_gauss, "gauss": gauss})
            content = np.array([has_gauss], np.int32).tobytes(), np.array([gauss]).tobytes()
            found = {
                at
                for at in found
                if (bytes(held[at : at + 4]), bytes(held[at + 8 : at + 16])) == content
            }
    finally:
        np.random.set_state(before)
    if len(found) != 1:
        return None
    (at,) = found
    return memory, held[at : at + 16]


def rows_of_bytes(raw: Any) -> list[memoryview]:
    """Each row of words of 64 bits, as far as a generator needs it, as bytes."""
    content, width = memoryview(raw).cast("B"), 8 * raw.shape[1]
    size = min(width, NUM_BYTES)
    return [content[i : i + size] for i in range(0, len(content), width)]
