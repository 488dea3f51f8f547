"""Where tensors of a nesting are, and putting them back there."""

from __future__ import annotations

from collections import OrderedDict, deque, namedtuple

import pytest
import torch

from fitkit.core.state_placement import device_tensor_paths, move_paths, place_like

META = torch.device("meta")
Pair = namedtuple("Pair", "first second")


def there():
    return torch.ones(2, device=META)


class OwnTuple(tuple):
    """Made in a way of its own."""

    def __new__(cls, first, second):
        return tuple.__new__(cls, (first, second))


STATES = {
    "dict": {"a": there(), "b": torch.ones(1)},
    "nested": {"a": [1, (there(), torch.ones(1))], 3: {"x": None, "y": there()}},
    "ordered": OrderedDict(a=there(), b=2.0),
    "deque": deque([there(), torch.ones(1), there()], maxlen=5),
    "named": [Pair(there(), 3)],
    "none": {"a": torch.ones(2), "b": [1.0] * 5},
}


@pytest.mark.parametrize("name", STATES)
def test_tensors_go_back_where_they_were(name):
    state = STATES[name]
    paths = device_tensor_paths(state)
    copy_to_host = host_copy(state)
    assert device_tensor_paths(copy_to_host) == []
    again = move_paths(copy_to_host, paths, META)
    assert device_tensor_paths(again) == paths
    assert type(again) is type(state)
    assert device_tensor_paths(place_like(copy_to_host, state)) == paths


def host_copy(tree):
    if isinstance(tree, torch.Tensor):
        return torch.zeros(tree.shape)
    if isinstance(tree, dict):
        return type(tree)((key, host_copy(value)) for key, value in tree.items())
    if isinstance(tree, deque):
        return deque(map(host_copy, tree), tree.maxlen)
    if hasattr(tree, "_fields"):
        return type(tree)(*map(host_copy, tree))
    return type(tree)(map(host_copy, tree)) if isinstance(tree, (list, tuple)) else tree


def test_looking_for_tensors_rebuilds_nothing_and_ends():
    itself = {"own": OwnTuple(1, there())}
    itself["itself"] = [itself]
    paths = device_tensor_paths(itself)
    assert ["own", 1] in paths
    assert len(paths) < 100
    own = {"own": itself["own"], "lr": torch.ones(())}
    assert place_like({"lr": torch.zeros(())}, own)["lr"].device.type == "cpu"
    assert move_paths({"own": itself["own"]}, [["other"]], META)["own"] is itself["own"]


def test_nothing_to_move_is_nothing_to_rebuild():
    state = {"a": [1, 2]}
    assert move_paths(state, [], META) is state
