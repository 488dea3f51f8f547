"""Gradients that differ between ranks are found, and only those."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.compare_gradients import (
    names_of,
    require_equal_gradients,
    require_equal_weights,
)
from fitkit.distributed.world import World


class Two(World):
    """This rank and another, which has these norms."""

    size = 2

    def __init__(self, *norms):
        self.norms = list(norms)

    def gather_all(self, value):
        self.own = value
        return [value, self.norms]


def parameters(*gradients):
    found = {}
    for index, gradient in enumerate(gradients):
        parameter = found[f"p{index}"] = nn.Parameter(torch.zeros(2))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    return found


@pytest.mark.parametrize(
    ("gradient", "norm"),
    [
        ([3.0, 4.0], 5.0),
        ([3.0, 4.0], 5.0 * (1 + 1e-7)),
        ([0.0, 0.0], 0.0),
        ([math.nan, 4.0], math.nan),
        ([math.inf, 4.0], math.inf),
        (None, None),
    ],
)
def test_equal_gradients_pass(gradient, norm):
    world = Two(5.0, norm)
    require_equal_gradients(world, parameters([3.0, 4.0], gradient))
    assert world.own[0] == 5.0


@pytest.mark.parametrize(
    ("gradient", "norm", "found"),
    [
        ([3.0, 4.0], 5.1, "the norm 5 on rank 0, the norm 5.1 on rank 1"),
        ([3.0, 4.0], None, "the norm 5 on rank 0, no gradient on rank 1"),
        (None, 0.0, "no gradient on rank 0, the norm 0 on rank 1"),
        ([3.0, 4.0], math.nan, "the norm 5 on rank 0, the norm nan on rank 1"),
    ],
)
def test_others_are_named_with_what_each_rank_has(gradient, norm, found):
    with pytest.raises(ConfigurationError) as raised:
        require_equal_gradients(Two(5.0, norm), parameters([3.0, 4.0], gradient))
    assert f"'p1' has {found}" in str(raised.value)
    assert "loss.backward()" in str(raised.value)


def test_sparse_and_complex_gradients_have_norms():
    sparse, complex_ = nn.Parameter(torch.zeros(4, 1)), nn.Parameter(torch.zeros(1).cfloat())
    sparse.grad = torch.sparse_coo_tensor([[1, 1]], [[3.0], [1.0]], (4, 1), check_invariants=True)
    complex_.grad = torch.tensor([3 + 4j])
    world = Two(4.0, 5.0)
    require_equal_gradients(world, {"sparse": sparse, "complex": complex_})
    assert world.own == [4.0, 5.0]


def test_weights_are_compared_too():
    weights = {"p0": nn.Parameter(torch.tensor([3.0, 4.0]))}
    require_equal_weights(Two(5.0), weights)
    with pytest.raises(ConfigurationError, match=r"'p0' has the norm 5 on rank 0, the norm 5.1"):
        require_equal_weights(Two(5.1), weights)


def test_long_lists_are_cut():
    assert names_of(["a", "b"]) == "'a', 'b'"
    assert names_of(list("abcde")) == "'a', 'b', 'c' and 2 more"
