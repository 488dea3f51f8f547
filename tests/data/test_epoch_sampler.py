import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit.data.epoch_sampler import EpochSampler, epoch_order


@given(st.integers(0, 50), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_an_order_is_a_permutation_and_a_function_of_seed_and_epoch(size, seed, epoch):
    order = epoch_order(size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))
    torch.rand(1)
    assert torch.equal(epoch_order(size, seed, epoch), order)


def test_epochs_and_seeds_give_other_orders_and_the_streams_stay(draw):
    expected = draw()
    torch.manual_seed(0)
    orders = {tuple(epoch_order(20, s, e).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9
    assert draw()[2] == expected[2]


def test_a_default_device_does_not_matter():
    with torch.device("meta"):
        order = epoch_order(5, 1, 1)
    assert order.tolist() == epoch_order(5, 1, 1).tolist()


def test_the_sampler_follows_its_epoch():
    sampler = EpochSampler(9, seed=3)
    assert len(sampler) == 9
    first = list(sampler)
    assert list(sampler) == first == epoch_order(9, 3, 0).tolist()
    sampler.set_epoch(4)
    assert list(sampler) == epoch_order(9, 3, 4).tolist() != first
