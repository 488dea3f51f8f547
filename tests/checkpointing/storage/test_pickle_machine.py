from __future__ import annotations

import pickle
import pickletools
import struct
from collections import OrderedDict

import pytest

from fitkit.checkpointing.storage.pickle_machine import PickleMachine
from fitkit.checkpointing.storage.pickle_values import ATTRIBUTES, LARGE, Dict, LargeInt, LongText


class Checks:
    """Records what the pickle does."""

    def __init__(self):
        self.calls, self.keys, self.steps = [], [], 0

    def name(self, name):
        return name

    def call(self, function, arguments):
        self.calls.append((function, arguments))
        return Dict() if function.endswith("OrderedDict") else None

    def load_storage(self, description):
        return description

    def check_keys(self, keys, target):
        self.keys += keys

    def spend(self, steps):
        self.steps += steps


def run(data: bytes, checks=None):
    return PickleMachine(data, checks or Checks()).run()


def test_plain_values_are_their_stand_ins():
    value = [1, -1, 70_000, 2**70, -(2**70), 2.5, True, False, None, "text", (), (1,), (1, 2, 3),
             tuple(range(9)), [], [[1]]]  # fmt: skip
    found = run(pickle.dumps(value, protocol=2))
    assert found == [b"text" if one == "text" else one for one in value]


def test_a_dict_is_its_keys_and_values_in_turn():
    checks = Checks()
    found = run(pickle.dumps({"a": 1, (2, 3): {"b": None}}, protocol=2), checks)
    assert found == [b"a", 1, (2, 3), [b"b", None]]
    assert type(found) is Dict
    assert checks.keys == [b"a", (2, 3)], "text and small numbers need no check"


@pytest.mark.parametrize("key", [1.5, LARGE, -LARGE, "x" * 128, (), (1,)])
def test_keys_whose_hash_or_length_the_file_decides_on_are_checked(key):
    for value in ({key: 1}, {key: 1, "b": 2}):  # by different operations
        checks = Checks()
        run(pickle.dumps(value, protocol=2), checks)
        assert len(checks.keys) == len(value)


def test_long_text_and_large_numbers_have_types_of_their_own():
    kinds = {"x" * 127: bytes, "x" * 128: LongText, LARGE - 1: int, 1 - LARGE: int}
    for value, kind in {**kinds, LARGE: LargeInt, -LARGE: LargeInt}.items():
        found = run(pickle.dumps([value], protocol=2))[0]
        assert type(found) is kind
        assert found == (value.encode() if isinstance(value, str) else value)
    assert LongText(b"x" * 300).num_bytes == 300
    assert LargeInt(2**800).num_bytes == 100


def test_one_object_used_twice_is_one_stand_in():
    inner = [1]
    found = run(pickle.dumps([inner, inner], protocol=2))
    assert found[0] is found[1]


def test_a_list_in_itself():
    value = []
    value.append(value)
    found = run(pickle.dumps(value, protocol=2))
    assert found[0] is found


def test_calls_have_the_names_that_torch_gives_them():
    checks = Checks()
    value = OrderedDict(a=1)
    value.extra = "attribute"
    found = run(pickle.dumps([value, {1, 2}], protocol=2), checks)
    assert checks.calls[0] == ("collections.OrderedDict", ())
    assert checks.calls[1] == ("builtins.set", ([1, 2],)), "protocol 2 writes __builtin__"
    assert found[0] == [b"a", 1, ATTRIBUTES, [b"extra", b"attribute"]]
    assert checks.steps == 2


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x02", b".", b"\x80\x02K", b"\x80\x02X\xff\xff\xff\x7fab.", b"t.", b"h\x00.",
     b"\x8a\xff\x01.", b"cmodule", b"a."],
)  # fmt: skip
def test_what_is_no_pickle_is_an_error(data):
    with pytest.raises((IndexError, KeyError, ValueError, EOFError, struct.error)):
        run(data)


def test_an_operation_that_torch_does_not_know_is_refused():
    """Those of later protocols, of protocol 0, and the one for integers above 255 bytes."""
    with pytest.raises(pickle.UnpicklingError, match="operation"):
        run(pickle.dumps(2**3000, protocol=2))
    for protocol in (0, 4, 5):
        with pytest.raises(pickle.UnpicklingError, match="operation"):
            run(pickle.dumps([1, "a"], protocol=protocol))


def test_every_operation_takes_as_many_bytes_as_it_has():
    """Against Python's own description of them: one byte too few is another program."""
    value = {"a": [1, 300, 70_000, -5, 2**40, 1.5, None, True, (1, (2, 3), (4, 5, 6), "x" * 300)]}
    data = pickle.dumps([value] * 300 + [list(range(300))], protocol=2)
    *_, (last, _, position) = pickletools.genops(data)
    machine = PickleMachine(data + b"the next file", Checks())
    machine.run()
    assert (last.name, machine.at) == ("STOP", position + 1)
