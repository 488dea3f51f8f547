from __future__ import annotations

from collections import deque

import pytest

from fitkit import CheckpointError
from fitkit.checkpointing.format.encoding import decode, encode
from fitkit.checkpointing.format.plain_values import MOST_BITS, is_unchanged, problem_of_key
from fitkit.checkpointing.storage import atomic_write, safe_load


def back(value, path):
    atomic_write.write(encode(value), path)
    return decode(safe_load.read(path))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integer_that_is_saved_is_read(tmp_path, sign):
    largest = sign * (2**MOST_BITS - 1)
    value = {"a": largest, largest: [largest], "b": {largest}, "c": (1, (largest,))}
    assert back(value, tmp_path / "a.pth") == value


HOLDERS = {
    "value": lambda number: number,
    "list": lambda number: [1, number],
    "dict": lambda number: {"a": {"b": number}},
    "key": lambda number: {number: 1},
    "part of a key": lambda number: {("a", (number, 1)): 1},
    "set": lambda number: {number},
    "frozenset": lambda number: frozenset([number]),
    "deque": lambda number: deque([number]),
    "range": lambda number: range(number),
    "tuple": lambda number: (1, (2, number)),
}


@pytest.mark.parametrize("number", [2**MOST_BITS, -(2**MOST_BITS), 10**1000])
@pytest.mark.parametrize("kind", HOLDERS)
def test_larger_ones_are_refused_when_they_are_saved(kind, number):
    for keep_types in (False, True):
        with pytest.raises(CheckpointError, match=rf"an integer of {number.bit_length()} bits"):
            encode(HOLDERS[kind](number), keep_types=keep_types)


def test_long_keys_are_refused_when_they_are_saved(tmp_path):
    """Reading refuses them, as a key of a file may not take long to hash."""
    longest = tuple(range(99))
    value = [{longest: 1} for _ in range(2000)]
    assert back(value, tmp_path / "a.pth") == value
    deep = 1
    for _ in range(99):
        deep = (deep,)
    assert back({deep: 1}, tmp_path / "a.pth") == {deep: 1}
    for key in (tuple(range(100)), (deep,), tuple((n, (n,)) for n in range(40))):
        with pytest.raises(CheckpointError, match="a key of more than 100 values"):
            encode({key: 1})


def test_a_key_that_holds_itself_many_times_is_refused():
    key = (1,)
    for _ in range(20):
        key = (key, key)
    assert problem_of_key(key) == "of more than 100 values"


def test_ordinary_values_need_no_second_look():
    assert all(map(is_unchanged, [None, True, 1, -(2**63), 2.5, 1j, "text", ""]))
    assert not any(map(is_unchanged, [b"x", 2**63, [1], {}, object()]))
