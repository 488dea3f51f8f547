"""What a rank sends to the others of its group; ``test_world.py`` has it with a group of torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.group_world import GroupWorld


class Second(GroupWorld):
    """Rank 1 of two, to which rank 0 sends bytes of one value."""

    size = 2
    rank = 1

    def __init__(self, *, value):
        self.value = value
        self.copied = []

    def _communicate(self, name, collective, *args, device=None):
        tensor, source = args
        assert (name, collective, source) == ("copy", dist.broadcast, 0)
        self.copied.append(tensor.dtype)
        tensor.fill_(self.value)


def test_buffers_of_all_types_are_copied_at_once():
    tensors = [
        torch.zeros(2, 3, dtype=torch.float64).t(),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(0),
        torch.zeros(3, dtype=torch.bfloat16),
    ]
    world = Second(value=0)
    world.copy_from_main(tensors)
    assert world.copied == [torch.uint8]
    world.value = 1
    world.copy_from_main(tensors)
    one = 0x0101010101010101
    assert tensors[1].item() == one
    assert tensors[2].all()
    assert tensors[0].flatten().view(torch.int64).tolist() == [one] * 6


def test_large_tensors_are_copied_without_a_second_copy_in_memory():
    world = Second(value=3)
    small, large, last = torch.zeros(2), torch.zeros(1 << 18, 2), torch.zeros(3, dtype=torch.int64)
    world.copy_from_main([small, large, last])
    assert world.copied == [torch.float32, torch.float32, torch.int64]
    assert all(bool((tensor == 3).all()) for tensor in (small, large, last))


def test_parameters_keep_their_place_in_memory():
    model = nn.Linear(3, 2)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    Second(value=0).copy_from_main(model.parameters())
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert not any(parameter.any() for parameter in model.parameters())


def test_nothing_is_sent_if_a_tensor_has_no_values_yet():
    world = Second(value=1)
    with pytest.raises(ConfigurationError, match="lazy parameters that have no values yet"):
        world.copy_from_main([torch.zeros(1), *nn.LazyLinear(2).parameters()])
    assert world.copied == []


def test_a_deep_copy_shares_the_world_and_a_pickle_is_refused():
    world = Second(value=0)
    assert copy.deepcopy({"handler": [world]})["handler"][0] is world
    with pytest.raises(ConfigurationError, match=r"cannot be pickled.*handler\.save"):
        pickle.dumps(world)
