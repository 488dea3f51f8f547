"""Arguments of operations; whole pickles are in test_pickle_machine.py."""

from __future__ import annotations

import math
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit.checkpointing.storage.pickle_reader import PickleReader, read_floats


@given(st.lists(st.floats(), min_size=1, max_size=5), st.sampled_from([1, 2, 999, 1000, 2001]))
def test_columns_of_floats_are_read_as_they_were(values, number):
    column = (values * number)[:number]
    data = b"".join(b"G" + struct.pack(">d", value) for value in column) + b"e."
    at, found = 0, []
    while data[at] == ord("G"):
        part = read_floats(data, at)
        found += part
        at += 9 * len(part)
    assert struct.pack(f"{number}d", *found) == struct.pack(f"{number}d", *column)
    assert data[at:] == b"e."


def test_a_float_that_looks_like_operations():
    value = struct.unpack(">d", b"GGGGGGGG")[0]
    data = pickle.dumps([value, 0.0, value], 2)
    assert read_floats(data, data.index(b"G")) == [value, 0.0, value]
    assert not math.isnan(value)


@pytest.mark.parametrize("size", range(18))
def test_a_column_that_is_cut_off(size):
    data = (b"G" + struct.pack(">d", 0.5)) * 2
    with pytest.raises((IndexError, ValueError, struct.error)):
        read_floats(data[:size], 0)


def test_numbers_and_names():
    reader = PickleReader(b"\x02\x01\x03\xff\xff\xff__builtin__\nset\nrest")
    assert reader.take_size(2) == 0x102
    assert reader.take_long() == -1
    assert reader.take_global() == "builtins.set"
    assert (reader.take(2), reader.take(9)) == (b"re", b"st")
