"""What is requested of the dataset: items of the sampler, taken a batch at a time."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, Sampler, SequentialSampler

from fitkit.data import request_sampler
from fitkit.data.rank_split import RankSplit
from fitkit.data.request_sampler import RequestSampler
from fitkit.runtime.rng import IsolatedStreams


class Drawing(Sampler):
    """Draws each index, and notes how many were asked for."""

    def __init__(self, size=10):
        self.size, self.asked = size, 0

    def __len__(self):
        return self.size

    def __iter__(self):
        for _ in range(self.size):
            self.asked += 1
            yield random.randrange(100) + int(torch.randint(9, ())) + np.random.randint(9)


class InPairs(Drawing):
    """Batches of two such indices."""

    def __iter__(self):
        for index in super().__iter__():
            yield [index, index + 1]


def sampler_of(indices, *, batched=True, rank=0, size=1, epoch=0, start=0):
    sampler = RequestSampler(indices, batched=batched, seed=3, ranks=RankSplit(rank, size))
    sampler.begin(epoch, start)
    return sampler


def in_batches(sampler, **options):
    return sampler_of(BatchSampler(sampler, 3, drop_last=False), **options)


@pytest.mark.parametrize("start", range(11))
@pytest.mark.parametrize("block", [1, 2, 4096])
def test_what_a_sampler_draws_does_not_depend_on_where_a_pass_begins(start, block, monkeypatch):
    monkeypatch.setattr(request_sampler, "_BLOCK", block)
    whole = [index for request in in_batches(Drawing()) for index in request.indices]
    assert len(set(whole)) > 1
    requests = list(in_batches(Drawing(), start=start))
    assert [index for request in requests for index in request.indices] == whole[start:]
    assert [request.position for request in requests] == list(range(start, 10, 3))
    pairs = [request.indices for request in sampler_of(InPairs())]
    assert [request.indices for request in sampler_of(InPairs(), start=start)] == pairs[start:]


@pytest.mark.parametrize(
    ("sampler", "visits"),
    [(Drawing(9), 1 + 4), (SequentialSampler(range(9)), 1), (RandomSampler(range(9)), 1)],
)
def test_the_streams_are_visited_once_for_each_batch(sampler, visits, monkeypatch):
    """Those of torch draw only when their iteration begins."""
    entered = []
    monkeypatch.setattr(
        IsolatedStreams,
        "__enter__",
        lambda streams, own=IsolatedStreams.__enter__: (entered.append(1), own(streams)),
    )
    assert len(list(in_batches(sampler))) == 3
    assert len(entered) == visits


def test_no_index_is_asked_for_before_its_batch():
    sampler = Drawing()
    requests = iter(in_batches(sampler))
    for number in range(1, 4):
        next(requests)
        assert sampler.asked == 3 * number


def test_the_streams_outside_are_left_alone():
    torch.manual_seed(1)
    expected = float(torch.rand(()))
    torch.manual_seed(1)
    list(in_batches(Drawing()))
    assert float(torch.rand(())) == expected


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_have_their_parts_of_the_same_batches(size):
    whole = [index for request in in_batches(Drawing()) for index in request.indices]
    samplers = [in_batches(Drawing(), rank=rank, size=size) for rank in range(size)]
    found = []
    for requests in zip(*samplers, strict=True):
        shares = [sampler.shares.popleft() for sampler in samplers]
        for request, share in zip(requests, shares, strict=True):
            found += request.indices if share.local else []
    assert found == whole
