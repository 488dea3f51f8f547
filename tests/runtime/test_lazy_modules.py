"""Lazy modules are made lazy again, as the same objects."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fitkit import CheckpointError
from fitkit.runtime.lazy_modules import (
    has_values,
    make_lazy_undo,
    require_values,
    uninitialized_names,
    with_values,
)


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 1))


def test_what_has_no_values_yet():
    model = make()
    names = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert set(uninitialized_names(model)) == names
    assert set(with_values(model.state_dict())) == {"1.num_batches_tracked", "2.weight", "2.bias"}
    assert not has_values(model[0].weight)
    with pytest.raises(CheckpointError, match=r"without values \('0\.bias', '0\.weight'.*before"):
        require_values(model)
    model(torch.ones(2, 4))
    assert uninitialized_names(model) == []
    require_values(model)


def test_lazy_again_and_the_second_first_batch_is_as_the_first():
    model = make()
    objects = [*model.parameters(), *model.buffers()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    undo = make_lazy_undo(model)
    for _ in range(2):
        torch.manual_seed(1)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.state.clear()
        assert type(model[0]) is nn.Linear
        assert model[0].in_features == 4
        first = model[0].weight.detach().clone()
        undo()
        assert type(model[0]) is nn.LazyLinear
        assert type(model[1]) is nn.LazyBatchNorm1d
        assert type(model[0].weight) is UninitializedParameter
        assert type(model[1].running_mean) is UninitializedBuffer
        assert model[0].weight.grad is None
        tensors = [*model.parameters(), *model.buffers()]
        assert list(map(id, tensors)) == list(map(id, objects))
    undo()  # once more changes nothing
    torch.manual_seed(1)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, first)
    assert not model[0]._forward_pre_hooks
    assert not model[0]._load_state_dict_pre_hooks


def test_what_has_values_stays():
    model = make()
    model(torch.ones(2, 4))
    undo, before = make_lazy_undo(model), {k: v.clone() for k, v in model.state_dict().items()}
    undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
