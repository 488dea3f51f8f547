"""Data-parallel training, as one process can see it; several are in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.runtime.parallel import DataParallel
from fitkit.runtime.world import World


class Told(World):
    """One of two processes; the other adds what the test says."""

    size = 2

    def __init__(self, of_the_other):
        self._of_the_other = of_the_other
        self.said = []

    def sum(self, sums):
        self.said.append(sums)
        return sums + self._of_the_other.to(sums)


def test_one_process_needs_no_wrapper():
    parallel, model = DataParallel(World()), nn.Linear(1, 1)
    assert parallel.wrap(model) is model
    model(torch.ones(1, 1)).sum().backward()
    before = model.weight.grad.clone()
    with parallel.held_back(model):
        pass
    parallel.average_gradients(model.parameters())
    assert torch.equal(model.weight.grad, before)


def test_a_model_without_anything_to_train_needs_none():
    model = nn.Linear(1, 1).requires_grad_(False)
    assert DataParallel(Told(torch.zeros(()))).wrap(model) is model


@pytest.fixture
def weights():
    """Four weights: with a gradient here, there, in both places, and frozen."""
    here, there, both, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    here.grad, both.grad = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])
    frozen.requires_grad_(False)
    return here, there, both, frozen


def test_gradients_that_were_held_back_are_averaged_in_one_reduction(weights):
    here, there, both, frozen = weights
    world = Told(torch.tensor([0.0, 0.0, 6.0, 8.0, 3.0, 5.0, 0.0, 1.0, 1.0]))
    DataParallel(world).average_gradients(weights)
    assert len(world.said) == 1
    assert here.grad.tolist() == [1.0, 2.0]
    assert there.grad.tolist() == [3.0, 4.0]
    assert both.grad.tolist() == [2.0, 3.0]
    assert frozen.grad is None


def test_a_gradient_that_nobody_has_stays_missing():
    weight = nn.Parameter(torch.zeros(2))
    DataParallel(Told(torch.zeros(3))).average_gradients([weight])
    assert weight.grad is None


def test_shapes_and_types_stay():
    one = nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    other = nn.Parameter(torch.zeros((), dtype=torch.float64))
    one.grad, other.grad = torch.ones_like(one), torch.ones_like(other)
    DataParallel(Told(torch.ones(9))).average_gradients([one, other])
    assert (one.grad.shape, one.grad.dtype) == ((2, 3), torch.bfloat16)
    assert (other.grad.shape, other.grad.dtype) == ((), torch.float64)
