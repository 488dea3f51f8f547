"""Generators that a user gave to a loader, interrupted and continued."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from fitkit.data.generator_state import UserGenerators, announce_epoch


def make(seed=0):
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(range(8), shuffle=True, generator=generator)
    return UserGenerators(loader), loader


def draw(loader, count=1):
    return [int(torch.randint(10**9, (), generator=loader.generator)) for _ in range(count)]


def test_a_new_pass_goes_on_where_the_last_one_ended():
    states, loader = make()
    states.open(3)
    draw(loader, 4)
    states.close()
    again, other = make(seed=5)
    again.load_state_dict(states.state_dict())
    again.open(4)
    assert draw(other, 2) == draw(loader, 2)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.data())
def test_stopped_at_any_draw_the_passes_are_the_same(passes, data):
    states, loader = make()
    stop = data.draw(st.integers(0, len(passes) - 1))
    for epoch, count in enumerate(passes):
        states.open(epoch)
        drawn = draw(loader, count)
        if epoch == stop:
            saved = states.state_dict()
            drawn += draw(loader, 1)
            expected = drawn
    again, other = make(seed=5)
    again.load_state_dict(saved)
    assert again.state_dict() is saved, "before the pass is opened the saved state is the state"
    again.open(stop)
    assert draw(other, passes[stop] + 1) == expected


def test_the_states_now():
    states, loader = make()
    states.open(0)
    saved, expected = states.state_dict(), draw(loader, 3)
    states.restore_now(saved)
    assert draw(loader, 3) == expected
    states.restore_now({})  # no state, nothing to set
    assert draw(loader) != expected[:1]


def test_another_number_of_generators_is_said_and_changes_nothing():
    states, loader = make()
    states.open(0)
    saved = {**states.state_dict(), "now": []}
    draw(loader)
    before = loader.generator.get_state()
    with pytest.warns(UserWarning, match="0 generators of the loader, which now has 1"):
        states.load_state_dict(saved)
    states.open(0)
    assert torch.equal(loader.generator.get_state(), before)


def test_each_generator_counts_once_wherever_it_is():
    one, two = torch.Generator(), torch.Generator()
    sampler = RandomSampler(range(8), generator=one)
    loader = DataLoader(range(8), batch_sampler=BatchSampler(sampler, 2, False), generator=two)
    states = UserGenerators(loader)
    states.open(0)
    assert len(states.state_dict()["now"]) == 2
    states = UserGenerators(SimpleNamespace(sampler=sampler, generator=one))
    assert len(states.state_dict()["now"]) == 1


def test_the_epoch_is_announced_to_all_that_can_hear_it():
    heard = []

    def part(name, **parts):
        return SimpleNamespace(set_epoch=lambda epoch: heard.append((name, epoch)), **parts)

    inner = part("inner")
    inner.sampler = inner  # a sampler that wraps itself
    loader = part("loader", dataset=part("data"), batch_sampler=part("batches", sampler=inner))
    announce_epoch(loader, 4)
    assert heard == [("loader", 4), ("data", 4), ("batches", 4), ("inner", 4)]
    announce_epoch(SimpleNamespace(set_epoch=None), 4)
