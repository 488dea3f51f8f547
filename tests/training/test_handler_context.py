"""What a handler's passes over data have in common with those of other ranks."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fitkit import NNHandler
from fitkit.distributed.world import World
from fitkit.training.handler_context import HandlerContext


@pytest.fixture
def handler():
    return NNHandler(nn.Linear, "cpu", in_features=2, out_features=1)


def rank(number, size=2):
    world = World()
    world.rank, world.size = number, size
    return world


def draws(handler, number, seeds=True):
    handler.world = rank(number, 3)
    HandlerContext(handler, seeds_ranks=seeds).seed_rank()
    return float(torch.rand(())), random.random(), float(np.random.rand())


def test_other_ranks_draw_each_their_own_from_a_step_on(handler):
    first = draws(handler, 1)
    assert draws(handler, 1) == first
    others = [draws(handler, 2)]
    handler.state.global_step = 1
    others.append(draws(handler, 1))
    for drawn in zip(first, *others, strict=True):
        assert len(set(drawn)) == 3


@pytest.mark.parametrize(("number", "seeds"), [(0, True), (1, False)])
def test_streams_that_are_not_the_ranks_own_go_on(handler, number, seeds):
    assert draws(handler, number, seeds) != draws(handler, number, seeds)


def test_buffers_are_copied_from_rank_0():
    module, copied = nn.BatchNorm1d(2), []
    handler = NNHandler(module, "cpu")
    handler.world = SimpleNamespace(rank=0, sum=None, copy_from_main=copied.extend)
    HandlerContext(handler).sync_buffers()
    assert [id(buffer) for buffer in copied] == [id(buffer) for buffer in module.buffers()]
