"""NumberList: what is pickled is its present content, however it became so."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.checkpointing.format import number_list
from fitkit.checkpointing.format.number_list import NumberList, PickledList
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
    values, expected = NumberList(), []
    for part in parts:
        for number in part:
            values.append(number)
        expected += part
        pickled = values.pickled()
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
    "begin again": lambda values: values.__init__([5.0, 6.0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_other_change_is_saved_too(monkeypatch, change):
    monkeypatch.setattr(number_list, "_CHUNK", 2)
    values = NumberList(map(float, range(9)))
    values.pickled()
    CHANGES[change](values)
    assert content_of(values.pickled()) == list(values)
    assert list(values) != list(map(float, range(9)))


def test_every_method_that_can_change_a_list_is_looked_at():
    harmless = {"append", "copy", "count", "index", "extend", "__iadd__"}
    public = {name for name in vars(list) if not name.startswith("__")}
    changing = {"__setitem__", "__delitem__", "__imul__", "__iadd__", "__init__"}
    own = {name for name in vars(NumberList) if name in vars(list)}
    assert (public | changing) - harmless <= own


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_copies_go_their_own_ways(monkeypatch, duplicate):
    monkeypatch.setattr(number_list, "_CHUNK", 2)
    values = NumberList(map(float, range(5)))
    values.pickled()
    other = duplicate(values)
    other[0] = 9.0
    values.extend([5.0, 6.0])
    assert content_of(values.pickled()) == list(map(float, range(7)))
    assert content_of(other.pickled()) == [9.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("item", ["text", None, 2**70, True, [1.0]])
def test_something_else_than_a_number_makes_it_a_plain_list(item):
    values = NumberList([1.0, item])
    assert type(values.pickled()) is list
    assert values.pickled() == [1.0, item]


def test_only_the_end_is_pickled_again(monkeypatch):
    values, seen, real = NumberList(map(float, range(10_500))), [], pickle.dumps
    monkeypatch.setattr(pickle, "dumps", lambda it, *rest: seen.append(len(it)) or real(it, *rest))
    assert isinstance(values.pickled(), PickledList)
    assert sum(seen) == 10_500
    seen.clear()
    values.append(1.0)
    values.pickled()
    assert seen == [501]
