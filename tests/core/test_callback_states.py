"""Undoing a restored state, keys, and entries of checkpoints; more in test_callback_list.py."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit import Callback, CheckpointError
from fitkit.core.callback_list import CallbackList


class Counter(Callback):
    state_fields = ("count",)

    def __init__(self, identity="", count=0):
        self.count = count
        self._identity = identity

    def identity(self):
        return self._identity


class Custom(Callback):
    """Keeps its state in an object that loading changes in place."""

    def __init__(self, values=()):
        self.kept = {"values": torch.tensor(values)}

    @property
    def values(self):
        return self.kept["values"]

    def state_dict(self):
        return self.kept

    def load_state_dict(self, state_dict):
        self.kept["values"] = state_dict["values"].clone()


@given(st.lists(st.sampled_from(["Counter", "Counter_2", "Counter_3", "silent"]), max_size=6))
def test_the_key_of_a_callback_leads_to_its_state(names):
    attached = CallbackList(Callback() if name == "silent" else Counter() for name in names)
    for callback, name in zip(attached, names, strict=True):
        callback.name, callback.count = name.replace("silent", "Counter"), id(callback)
    counters = [callback for callback in attached if callback.state_fields]
    states = attached.state_dict()
    assert len(states) == len(counters)
    for counter in counters:
        assert states[attached.key_of(counter)]["state"] == {"count": id(counter)}
        others = attached.state_dict(without=counter).values()
        assert {"count": id(counter)} not in [entry["state"] for entry in others]


@pytest.mark.parametrize("part", ["name", "identity", "state"])
@pytest.mark.parametrize("value", [None, 3, [], "missing"])
def test_an_entry_that_cannot_be_read_changes_nothing(part, value):
    callback = Counter("a", count=5)
    attached = CallbackList([callback])
    good = {"name": "Counter", "identity": "a", "state": {"count": 9}}
    bad = {**good, part: value}
    if value == "missing":
        del bad[part]
    with pytest.raises(CheckpointError, match=r"state of callback 'x' .* name, identity and state"):
        attached.load_state_dict({"first": good, "x": bad})
    assert (callback.count, attached.unclaimed) == (5, {})


@pytest.mark.parametrize("undo_hooks", [False, True])
def test_what_was_loaded_is_undone(undo_hooks):
    counter, custom = Counter("a", count=1), Custom([1.0])
    attached = CallbackList([counter, custom])
    before = copy.deepcopy(attached.state_dict())
    undo = attached.make_undo(undo_hooks=undo_hooks)
    loaded = CallbackList([Counter("a", count=7), Custom([2.0, 3.0]), Counter("b")]).state_dict()
    attached.load_state_dict(loaded)
    assert (counter.count, custom.values.tolist()) == (7, [2.0, 3.0])
    assert list(attached.unclaimed) == ["Counter_2"]
    undo()
    assert repr(attached.state_dict()) == repr(before)
    assert attached.unclaimed == {}
    attached.begin()
    assert counter.count == 1


def test_hooks_and_members_are_undone_if_asked():
    counter, custom = Counter(count=1), Custom([1.0])
    attached = CallbackList([counter, custom])
    undo = attached.make_undo(undo_hooks=True)
    counter.count, counter.extra = 5, "new"
    custom.values.add_(1)
    attached.remove(counter)
    attached.add(Counter(count=3))
    undo()
    assert list(attached) == [counter, custom]
    assert (counter.count, custom.values.tolist()) == (1, [1.0])
    assert not hasattr(counter, "extra")


def test_an_adopted_state_is_not_reset():
    attached = CallbackList([mine := Counter(), other := Counter()])
    mine.spans_fits = other.spans_fits = True
    attached.adopt(mine)
    for callback in (mine, other):
        callback.remember_initial_state()
        callback.count = 4
    attached.begin()
    assert (mine.count, other.count) == (4, 0)


def test_tensors_of_the_device_go_to_the_device():
    state = CallbackList([Custom([1.0])]).state_dict()
    state["Custom"]["on_device"] = [["values"]]
    custom = Custom()
    CallbackList([custom]).load_state_dict(state, torch.device("meta"))
    assert custom.values.device.type == "meta"
