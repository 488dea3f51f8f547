"""Weights are copied into a module, or it stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit import CheckpointError
from fitkit.handler.copy_weights import copy_into


def filled(value):
    return {"weight": torch.full((2, 3), value), "bias": torch.full((2,), value)}


def test_tensors_are_copied_and_not_shared():
    module, weights = nn.Linear(3, 2), filled(2.0)
    before = module.weight
    copy_into(module, weights)
    assert module.weight is before
    assert torch.equal(module.weight.detach(), weights["weight"])
    weights["weight"].fill_(9.0)
    assert float(module.weight.detach().mean()) == 2.0


@pytest.mark.parametrize("weights", [{"weight": torch.ones(2, 3)}, {**filled(1.0), "more": 1}])
def test_names_that_do_not_fit(weights):
    module = nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"weights do not fit Linear: (.|\n)*Do this\."):
        copy_into(module, weights, remedy="Do this.")
    copy_into(module, weights, strict=False)
    assert torch.equal(module.weight.detach(), torch.ones(2, 3))


class Renames(nn.Linear):
    """Its own loading takes another name."""

    def _load_from_state_dict(self, state, prefix, *args):
        state[f"{prefix}weight"] = state.pop(f"{prefix}old")
        super()._load_from_state_dict(state, prefix, *args)


def test_a_check_that_fails_leaves_the_module_as_it_was():
    module = Renames(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def check():
        assert float(module.weight.detach().mean()) == 2.0  # as loaded
        raise CheckpointError("no")

    weights = filled(2.0)
    weights["old"] = weights.pop("weight")
    with pytest.raises(CheckpointError, match="no"):
        copy_into(module, weights, check=check)
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())
