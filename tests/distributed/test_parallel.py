"""Data-parallel training, as one process can see it; several are in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.distributed.parallel import DDPParallel
from fitkit.distributed.world import World


class Told(World):
    """One of two processes; the other has these gradients."""

    size = 2

    def __init__(self, *gradients):
        self._has = [int(one is not None) for one in gradients]
        self._gradients = [one for one in gradients if one is not None]
        self.asked, self.summed = [], []

    def largest(self, values):
        self.asked.append(values)
        both = [max(pair) for pair in zip(values, self._has, strict=True)]
        given, others = iter(self._gradients), zip(both, self._has, strict=True)
        self._sent = [next(given) if there else 0.0 for is_anywhere, there in others if is_anywhere]
        return both

    def sum_in_place(self, tensor):
        assert tensor.is_contiguous()
        tensor += self._sent[len(self.summed)]
        self.summed.append(tensor.data_ptr())


def test_one_process_needs_no_wrapper():
    parallel, model = DDPParallel(World()), nn.Linear(1, 1)
    assert parallel.wrap(model) is model
    model(torch.ones(1, 1)).sum().backward()
    before = model.weight.grad.clone()
    with parallel.no_sync(model):
        pass
    parallel.average_gradients(model.parameters())
    assert torch.equal(model.weight.grad, before)


def test_a_model_without_anything_to_train_needs_none():
    model = nn.Linear(1, 1).requires_grad_(False)
    assert DDPParallel(Told()).wrap(model) is model


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
    DDPParallel(world).average_gradients(weights)
    assert world.asked == [[1, 0, 1]]
    assert here.grad.tolist() == [1.0, 2.0]
    assert there.grad.tolist() == [3.0, 4.0]
    assert both.grad.tolist() == [2.0, 3.0]
    assert frozen.grad is None


def test_each_stays_in_its_memory(weights):
    here, there, both, _ = weights
    before = [here.grad.data_ptr(), both.grad.data_ptr()]
    world = Told(None, torch.ones(2), torch.ones(2))
    DDPParallel(world).average_gradients(weights)
    assert [here.grad.data_ptr(), both.grad.data_ptr()] == before
    assert world.summed == [here.grad.data_ptr(), there.grad.data_ptr(), both.grad.data_ptr()]


def test_a_gradient_that_nobody_has_stays_missing():
    weight = nn.Parameter(torch.zeros(2))
    world = Told(None)
    DDPParallel(world).average_gradients([weight])
    assert weight.grad is None
    assert world.summed == []


def test_who_trains_nothing_asks_nobody():
    world = Told()
    DDPParallel(world).average_gradients([nn.Parameter(torch.zeros(2), requires_grad=False)])
    assert world.asked == []


def test_shapes_and_types_stay():
    one = nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    other = nn.Parameter(torch.zeros((), dtype=torch.float64))
    one.grad, other.grad = torch.ones_like(one), torch.ones_like(other)
    DDPParallel(Told(torch.ones(2, 3), torch.ones(()))).average_gradients([one, other])
    assert (one.grad.shape, one.grad.dtype) == ((2, 3), torch.bfloat16)
    assert (other.grad.shape, other.grad.dtype) == ((), torch.float64)


def test_each_is_as_exact_as_its_own_type():
    """One large gradient of a type of little precision does not take that of others away."""
    coarse = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    fine = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    coarse.grad, fine.grad = torch.ones_like(coarse), torch.full_like(fine, 1 + 2**-40)
    DDPParallel(Told(torch.ones(1), torch.ones(1))).average_gradients([coarse, fine])
    assert fine.grad.item() == 1 + 2**-41


def test_ranks_add_what_belongs_together_however_it_is_laid_out():
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.arange(6.0).reshape(3, 2).t()
    layout = weight.grad.stride()
    expected = (weight.grad + torch.arange(6.0).reshape(2, 3)) / 2
    DDPParallel(Told(torch.arange(6.0).reshape(2, 3))).average_gradients([weight])
    assert torch.equal(weight.grad, expected)
    assert weight.grad.stride() == layout


@pytest.mark.parametrize(("is_in_order", "most"), [(True, 0), (False, 1)])
def test_at_most_one_gradient_is_in_memory_twice(is_in_order, most, accelerator):
    parameters = [nn.Parameter(torch.zeros(1000, 10, device="sim")) for _ in range(5)]
    for one in parameters:
        one.grad = torch.ones(1000, 10, device="sim")
        if not is_in_order:
            one.grad = torch.ones(10, 1000, device="sim").t()
    accelerator.reset_peak()
    before = accelerator.peak
    DDPParallel(Told(*[3.0] * 5)).average_gradients(parameters)
    assert all(one.grad.eq(2.0).all() for one in parameters)
    assert most * 40_000 <= accelerator.peak - before < (most + 0.5) * 40_000


def sparse(indices, values):
    return torch.sparse_coo_tensor([indices], values, (4, 1), check_invariants=True)


@pytest.mark.parametrize("is_here", [True, False])
def test_sparse_gradients_stay_sparse_also_where_one_is_missing(is_here):
    class Other(World):
        """The other process has rows 1 and 2."""

        size = 2

        def largest(self, values):
            return [2]

        def sum_in_place(self, tensor):
            total = (tensor + sparse([1, 2], [[4.0], [6.0]])).coalesce()
            tensor.sparse_resize_and_clear_((4, 1), 1, 1)
            tensor.add_(total)

    weight = nn.Parameter(torch.zeros(4, 1))
    if is_here:
        weight.grad = sparse([0, 1, 1], [[1.0], [1.0], [1.0]])
    DDPParallel(Other()).average_gradients([weight])
    assert weight.grad.is_sparse
    expected = [0.5, 3.0, 3.0, 0.0] if is_here else [0.0, 2.0, 3.0, 0.0]
    assert weight.grad.to_dense().flatten().tolist() == expected


def test_without_windows_the_gradients_of_a_loss_are_averaged_at_their_end():
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    world = Told(torch.full((2,), 3.0))
    parallel = DDPParallel(world)
    parallel.sync_loss([weight], is_full=False)
    assert weight.grad.tolist() == [1.0, 1.0]
    parallel.sync_loss([weight], is_full=True)
    assert weight.grad.tolist() == [2.0, 2.0]
