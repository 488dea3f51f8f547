"""A pickle joined from parts is the pickle of the whole."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict

import pytest

from fitkit.checkpointing.format.growing_list import GrowingList
from fitkit.checkpointing.storage.joined_pickler import JoinedPickler


def dump(content):
    file = io.BytesIO()
    JoinedPickler(file, 2).dump(content)
    return file.getvalue()


@pytest.mark.parametrize("content", [3, None, "a", [1, [2.5]], {"a": {"b": ("a", b"c")}}, {}])
def test_without_pickled_parts_the_bytes_are_pickles_own(content):
    assert dump(content) == pickle.dumps(content, 2)


def test_pickled_parts_stand_where_the_lists_were():
    lists = [list(range(n)) for n in (0, 1, 2, 999, 1000, 1001, 2500)]
    whole = {n: {"values": one, "other": [n, "text"]} for n, one in enumerate(lists)}
    joined = {
        n: {**entry, "values": GrowingList().pickled(entry["values"], False)}
        for n, entry in whole.items()
    }
    found = pickle.loads(dump({"before": "text", "in": joined, "after": "text"}))
    assert found == {"before": "text", "in": whole, "after": "text"}
    assert list(found) == ["before", "in", "after"]


def test_what_is_used_again_stays_one_object_across_parts():
    shared, word = ["shared"], "a rather long word"
    pickled = GrowingList().pickled([1.0], False)
    content = {"a": shared, word: pickled, "b": {"c": shared, "d": pickled, "e": word}}
    found = pickle.loads(dump(content))
    assert found["a"] is found["b"]["c"]
    assert list(found)[1] is found["b"]["e"]


def test_a_value_in_something_else_than_a_dict_is_an_error_not_a_wrong_file():
    pickled = GrowingList().pickled([1.0], False)
    for content in ([pickled], OrderedDict(a=pickled)):
        with pytest.raises(TypeError, match="PickledList"):
            dump(content)
