"""What a step does to a gathered parameter reaches its shard, as one process can see it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.core.errors import ConfigurationError
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import Share
from fitkit.distributed.dtensor import local_tensor
from fitkit.distributed.fsdp import FSDPParallel
from fitkit.distributed.world import World


@pytest.fixture
def model(mesh):
    return nn.Linear(2, 1, bias=False)


@pytest.fixture
def step(model):
    parallel = FSDPParallel(World(), torch.device("cpu"))
    parallel.shard(model)
    sync = parallel.step_sync(TrainedModules(model), None, is_custom=True)
    model.weight.grad = torch.full_like(model.weight, 2.0)
    yield lambda: sync.step(lambda: Share(1, None))
    sync.close()


def gradient(model):
    return None if model.weight.grad is None else local_tensor(model.weight.grad).tolist()


def drop(model):
    for parameter in model.parameters():
        parameter.grad = None


CLEARED = {
    "zero_grad": lambda model: model.zero_grad(),
    "to zeros": lambda model: model.zero_grad(set_to_none=False),
    "one by one": drop,
}


@pytest.mark.parametrize("clear", CLEARED.values(), ids=CLEARED)
@pytest.mark.parametrize("is_late", [False, True])
def test_gradients_that_a_step_clears_are_those_of_the_shards(model, step, clear, is_late):
    with step():
        if not is_late:
            clear(model)
        loss = model(torch.ones(1, 2)).sum()
        if is_late:
            clear(model)
        loss.backward()
    assert gradient(model) == [[1.0, 1.0]]


def test_they_may_be_cleared_at_the_end_of_a_step(model, step):
    with step():
        model(torch.ones(1, 2)).sum().backward()
        model(torch.ones(1, 2))  # gathers the model again
        model.zero_grad()
    assert gradient(model) is None


def test_gradients_that_it_leaves_alone_add_up(model, step):
    with step():
        loss = model(torch.ones(1, 2)).sum()
        torch.autograd.grad(loss, model.weight, retain_graph=True)
        loss.backward()
    assert gradient(model) == [[3.0, 3.0]]


@pytest.mark.parametrize("has_pass", [False, True])
def test_changed_values_are_kept(model, step, has_pass):
    with step():
        model.weight.data.fill_(5.0)
        loss = model(torch.ones(1, 2)).sum()
        if has_pass:
            loss.backward()
    assert loss.item() == 10.0
    assert local_tensor(model.weight).tolist() == [[5.0, 5.0]]


def test_an_optimizer_changes_the_shards_meanwhile(model, step):
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = local_tensor(model.weight).detach().clone()
    with step():
        sgd.step()
    assert torch.equal(local_tensor(model.weight), before - 2)


@pytest.mark.parametrize("has_one", [False, True])
def test_an_assigned_gradient_is_refused(model, step, has_one):
    if not has_one:
        model.weight.grad = None
    with (
        pytest.raises(ConfigurationError, match=r"assigns .grad of 'weight' of FSDPLinear"),
        step(),
    ):
        model.weight.grad = torch.ones_like(model.weight)
    assert local_tensor(model.weight).shape == (1, 2)
