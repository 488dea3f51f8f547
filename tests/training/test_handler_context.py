"""What a handler's passes over data have in common with those of other ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fitkit import NNHandler
from fitkit.core.state import Phase
from fitkit.distributed.world import World
from fitkit.training.handler_context import HandlerContext


@pytest.fixture
def handler():
    return NNHandler(nn.Linear, "cpu", in_features=2, out_features=1)


def rank(number, size=2):
    world = World()
    world.rank, world.size = number, size
    return world


def draws(context):
    context.seed_batch()
    return float(torch.rand(()))


def test_other_ranks_draw_the_same_for_the_same_batch(handler):
    handler.world = rank(1)
    context, state = HandlerContext(handler, seeds_batches=True), handler.state
    first = draws(context)
    assert draws(context) == first
    seen = {first}
    for name, value in (("global_step", 1), ("batch", 1), ("phase", Phase.TEST)):
        setattr(state, name, value)
        seen.add(draws(context))
    handler.world = rank(2, 3)
    seen.add(draws(context))
    assert len(seen) == 5


@pytest.mark.parametrize(("number", "seeds"), [(0, True), (1, False)])
def test_streams_that_are_saved_are_not_seeded(handler, number, seeds):
    handler.world = rank(number)
    context = HandlerContext(handler, seeds_batches=seeds)
    assert draws(context) != draws(context)


def test_buffers_are_copied_from_rank_0():
    module, copied = nn.BatchNorm1d(2), []
    handler = NNHandler(module, "cpu")
    handler.world = SimpleNamespace(rank=0, sum=None, copy_from_main=copied.extend)
    HandlerContext(handler).sync_buffers()
    assert [id(buffer) for buffer in copied] == [id(buffer) for buffer in module.buffers()]
