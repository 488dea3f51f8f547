"""A step of a sharded model, as one process can see it; test_ddp_step_sync.py runs several."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import Share
from fitkit.distributed.dtensor import is_dtensor, local_tensor
from fitkit.distributed.fsdp import FSDPParallel
from fitkit.distributed.world import World


class Margin(nn.Module):
    """A loss with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.margin = nn.Parameter(torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))


@pytest.fixture
def modules(mesh):
    return TrainedModules(nn.Linear(3, 1), Margin())


@pytest.fixture
def sync(modules):
    parallel = FSDPParallel(World(), torch.device("cpu"))
    parallel.shard(modules.model)
    sync = parallel.step_sync(modules, None, is_custom=True)
    yield sync
    sync.close()


def test_a_backward_pass_of_the_step_is_weighted(sync, modules):
    """With one rank the weight is 1, and FSDP takes the mean over that rank."""
    with sync.step(lambda: Share(2, None)):
        modules.model.weight.sum().backward()
        assert is_dtensor(modules.model.weight)  # so that clipping finds the gradient
        assert local_tensor(modules.model.weight.grad).tolist() == [[1.0] * 3]


def test_a_rank_without_samples_adds_zeros(sync, modules):
    with sync.step(lambda: Share(0, None)):
        (modules.model.weight * torch.nan).sum().backward()
    assert local_tensor(modules.model.weight.grad).tolist() == [[0.0] * 3]


def test_an_optimizer_step_is_seen_by_what_follows(sync, modules):
    sgd = torch.optim.SGD(modules.model.parameters(), lr=1.0)
    with sync.step(lambda: Share(1, None)):
        before = modules.model.weight.detach().clone()
        modules.model.weight.sum().backward()
        sgd.step()
        assert torch.equal(modules.model.weight, before - 1)


def test_a_loss_without_weight_still_goes_through_the_model(sync):
    loss = torch.tensor(torch.nan, requires_grad=True)
    assert sync.without_weight(loss) == 0.0
    assert sync.without_weight(loss).requires_grad


def test_the_hooks_go_with_the_run(sync, modules, monkeypatch):
    calls = []
    monkeypatch.setattr(sync._own, "begin_pass", lambda: calls.append("pass") or 1.0)
    with sync.step(lambda: Share(1, None)):
        modules.model(torch.ones(1, 3)).sum().backward()
    assert calls == ["pass", "pass"]  # weight and bias
    sync.close()
    modules.model(torch.ones(1, 3)).sum().backward()
    assert calls == ["pass", "pass"]
