"""Means of gradients over ranks, as one process can see it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.distributed import average_gradients as module
from fitkit.distributed.average_gradients import average_gradients
from fitkit.distributed.world import World


class Told(World):
    """One of two processes; the other has these gradients."""

    size = 2

    def __init__(self, *gradients, weight=0.5):
        self._gradients, self._weight = gradients, weight
        self.asked, self.summed = [], []

    def largest(self, values):
        self.asked.append(values)
        has = [int(one is not None) for one in self._gradients]
        both = [max(pair) for pair in zip(values, has, strict=True)]
        sent = [g for g, is_anywhere in zip(self._gradients, both, strict=True) if is_anywhere]
        self._sent = [None if g is None else g.double().flatten() * self._weight for g in sent]
        return both

    def sum_in_place(self, tensor):
        """Add what the other has for the next gradients, which are one after the other."""
        assert tensor.is_contiguous()
        flat, place = tensor.view(-1), 0
        while place < len(flat):
            sent = self._sent.pop(0)
            sent = torch.zeros(2) if sent is None else sent
            flat[place : place + len(sent)] += sent
            place += len(sent)
        self.summed.append((tensor.data_ptr(), len(flat)))


def average(world, parameters, weight=None):
    average_gradients(world, [p for p in parameters if p.requires_grad], weight)


def test_one_process_has_the_mean():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    average(World(), [weight], 0.25)
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.fixture
def weights():
    """Four weights: with a gradient here, there, in both places, and frozen."""
    here, there, both, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    here.grad, both.grad = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0])
    frozen.requires_grad_(False)
    return here, there, both, frozen


def test_gradients_that_were_held_back_are_averaged(weights):
    here, there, both, frozen = weights
    world = Told(None, torch.tensor([6.0, 8.0]), torch.tensor([3.0, 5.0]))
    average(world, weights)
    assert world.asked == [[1, 0, 1]]
    assert here.grad.tolist() == [1.0, 2.0]
    assert there.grad.tolist() == [3.0, 4.0]
    assert both.grad.tolist() == [2.0, 3.0]
    assert frozen.grad is None


def test_each_stays_in_its_memory_and_all_are_sent_at_once(weights):
    here, _, both, _ = weights
    before = [here.grad.data_ptr(), both.grad.data_ptr()]
    world = Told(None, torch.ones(2), torch.ones(2))
    average(world, weights)
    assert [here.grad.data_ptr(), both.grad.data_ptr()] == before
    assert [length for _, length in world.summed] == [6]


def test_a_rank_without_weight_adds_nothing_even_if_it_has_nan():
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    weight.grad, other.grad = torch.full((2,), torch.nan), torch.ones(2)
    average(Told(torch.tensor([6.0, 8.0]), None, weight=1.0), [weight, other], 0.0)
    assert weight.grad.tolist() == [6.0, 8.0]
    assert other.grad.tolist() == [0.0, 0.0]


def test_ranks_count_by_their_weights():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([4.0, 8.0])
    average(Told(torch.tensor([8.0, 4.0]), weight=0.75), [weight], 0.25)
    assert weight.grad.tolist() == [7.0, 5.0]


def test_a_gradient_that_nobody_has_stays_missing():
    weight = nn.Parameter(torch.zeros(2))
    world = Told(None)
    average(world, [weight])
    assert weight.grad is None
    assert world.summed == []


def test_who_trains_nothing_asks_nobody():
    world = Told()
    average(world, [nn.Parameter(torch.zeros(2), requires_grad=False)])
    assert world.asked == []


def test_shapes_and_types_stay():
    one = nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    other = nn.Parameter(torch.zeros((), dtype=torch.float64))
    one.grad, other.grad = torch.ones_like(one), torch.ones_like(other)
    average(Told(torch.ones(2, 3), torch.ones(())), [one, other])
    assert (one.grad.shape, one.grad.dtype) == ((2, 3), torch.bfloat16)
    assert (other.grad.shape, other.grad.dtype) == ((), torch.float64)


def test_each_is_as_exact_as_its_own_type():
    """One large gradient of a type of little precision does not take that of others away."""
    coarse = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    fine = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    coarse.grad, fine.grad = torch.ones_like(coarse), torch.full_like(fine, 1 + 2**-40)
    average(Told(torch.ones(1), torch.ones(1)), [coarse, fine])
    assert fine.grad.item() == 1 + 2**-41


def test_ranks_add_what_belongs_together_however_it_is_laid_out():
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.arange(6.0).reshape(3, 2).t()
    layout = weight.grad.stride()
    expected = (weight.grad + torch.arange(6.0).reshape(2, 3)) / 2
    average(Told(torch.arange(6.0).reshape(2, 3)), [weight])
    assert torch.equal(weight.grad, expected)
    assert weight.grad.stride() == layout


@pytest.mark.parametrize(("is_in_order", "most"), [(True, 0), (False, 1)])
def test_at_most_one_gradient_is_in_memory_twice(is_in_order, most, accelerator, monkeypatch):
    parameters = [nn.Parameter(torch.zeros(1000, 10, device="sim")) for _ in range(5)]
    for one in parameters:
        one.grad = torch.ones(1000, 10, device="sim")
        if not is_in_order:
            one.grad = torch.ones(10, 1000, device="sim").t()
    accelerator.reset_peak()
    before = accelerator.peak
    monkeypatch.setattr(module, "BUCKET_BYTES", 10_000)

    class Adds(World):
        """The other process has threes."""

        size = 2

        def sum_in_place(self, tensor):
            tensor += 1.5

    average(Adds(), parameters)
    assert all(one.grad.eq(2.0).all() for one in parameters)
    assert most * 40_000 <= accelerator.peak - before < (most + 0.5) * 40_000


def sparse(indices, values):
    return torch.sparse_coo_tensor([indices], values, (4, 1), check_invariants=True)


@pytest.mark.parametrize("is_here", [True, False])
def test_sparse_gradients_stay_sparse_also_where_one_is_missing(is_here):
    class Other(World):
        """The other process has 4 and 6 in rows 1 and 2."""

        size = 2

        def largest(self, values):
            return [2]

        def sum_in_place(self, tensor):
            total = (tensor + sparse([1, 2], [[2.0], [3.0]])).coalesce()
            tensor.sparse_resize_and_clear_((4, 1), 1, 1)
            tensor.add_(total)

    weight = nn.Parameter(torch.zeros(4, 1))
    if is_here:
        weight.grad = sparse([0, 1, 1], [[1.0], [1.0], [1.0]])
    average(Other(), [weight])
    assert weight.grad.is_sparse
    expected = [0.5, 3.0, 3.0, 0.0] if is_here else [0.0, 2.0, 3.0, 0.0]
    assert weight.grad.to_dense().flatten().tolist() == expected
