"""The choice of what a rank does with the others."""

from __future__ import annotations

import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.parallel import DDPParallel, Parallel
from fitkit.distributed.world import World


def test_one_rank_does_nothing_with_others():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    for parallel in (Parallel(World()), DDPParallel(World())):
        assert parallel.step_sync(TrainedModules(model), optimizer, is_custom=True) is None
        assert not parallel.is_sharded


def test_tensors_of_a_checkpoint_are_whole():
    parallel = Parallel(World())
    assert parallel.empty_dtensor((2, 3), torch.float64).shape == (2, 3)
    assert parallel.on_local_tensors(torch.neg)(torch.ones(1)) == -1
