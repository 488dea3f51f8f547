"""GrowingList: what is pickled is the present content, however it became so."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.checkpointing.format import growing_list
from fitkit.checkpointing.format.growing_list import GrowingList, PickledList
from fitkit.checkpointing.storage.joined_pickler import JoinedPickler

NUMBERS = st.floats() | st.integers(-(2**63), 2**63 - 1)


def content_of(pickled):
    file = io.BytesIO()
    JoinedPickler(file, 2).dump(pickled)
    return pickle.loads(file.getvalue())


def is_same(found, expected):
    return list(map(repr, found)) == list(map(repr, expected))  # types, NaN and signs of zero


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NUMBERS, max_size=7), max_size=6))
def test_every_save_holds_what_was_appended_so_far(parts):
    growing, values, expected = GrowingList(), [], []
    for part in parts:
        values += part
        expected += part
        pickled = growing.pickled(values, True)
        values.append(math.nan)
        assert is_same(content_of(pickled), expected), "it does not follow the list"
        values.pop()


CHANGES = {
    "set": lambda values: values.__setitem__(0, -1.0),
    "set a part": lambda values: values.__setitem__(slice(0, 3), [7.0]),
    "delete": lambda values: values.__delitem__(1),
    "insert": lambda values: values.insert(0, -1.0),
    "pop": lambda values: values.pop(0),
    "remove": lambda values: values.remove(2.0),
    "clear": lambda values: values.clear(),
    "reverse": lambda values: values.reverse(),
    "sort": lambda values: values.sort(key=lambda value: -value),
    "repeat": lambda values: values.__imul__(2),
    "vanish": lambda values: values.__imul__(0),
    "extend": lambda values: values.extend([5.0]),
    "add": lambda values: values.__iadd__([5.0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_other_change_is_saved_too(monkeypatch, change):
    monkeypatch.setattr(growing_list, "_CHUNK", 2)
    growing, values = GrowingList(), list(map(float, range(9)))
    growing.pickled(values, True)
    CHANGES[change](values)
    assert content_of(growing.pickled(values, True)) == values
    assert values != list(map(float, range(9)))


def test_copies_go_their_own_ways(monkeypatch):
    monkeypatch.setattr(growing_list, "_CHUNK", 2)
    growing, values = GrowingList(), list(map(float, range(5)))
    growing.pickled(values, True)
    other, others = copy.deepcopy(growing), [9.0, *values[1:]]
    values += [5.0, 6.0]
    assert content_of(growing.pickled(values, True)) == list(map(float, range(7)))
    assert content_of(other.pickled(others, True)) == [9.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("item", ["text", None, 2**70, True, [1.0]])
def test_something_else_than_a_number_makes_it_a_plain_list(item):
    pickled = GrowingList().pickled([1.0, item], False)
    assert type(pickled) is list
    assert pickled == [1.0, item]


def test_only_the_end_is_pickled_again(monkeypatch):
    growing, values, seen = GrowingList(), list(map(float, range(10_500))), []
    real = pickle.dumps
    monkeypatch.setattr(pickle, "dumps", lambda it, *rest: seen.append(len(it)) or real(it, *rest))
    assert isinstance(growing.pickled(values, True), PickledList)
    assert sum(seen) == 10_500
    seen.clear()
    values.append(1.0)
    growing.pickled(values, True)
    assert seen == [501]
