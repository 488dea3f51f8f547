"""Parts of a sharded model may be called while a step runs, as one process can see it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fitkit.core.errors import ConfigurationError
from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.dtensor import is_dtensor, local_tensor
from fitkit.distributed.fsdp import FSDPParallel
from fitkit.distributed.gathered_model import GatheredModel, _before_accumulation, explained
from fitkit.distributed.world import World


class Model(nn.Module):
    """A layer, and blocks with parts."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Tanh())])

    def forward(self, x):
        return self.blocks[0](self.first(x))


@pytest.fixture
def model(mesh):
    torch.manual_seed(0)
    model = Model()
    FSDPParallel(World(), torch.device("cpu")).shard(model)
    return model


def sharded(model):
    return {name for name, p in model.named_parameters() if is_dtensor(p)}


ROOT = {"first.weight", "first.bias"}
BLOCK = {"blocks.0.0.weight", "blocks.0.0.bias"}


def test_only_what_a_step_needs_is_gathered(model):
    gathered = GatheredModel(model)
    x = torch.ones(1, 3)
    assert sharded(model) == ROOT | BLOCK
    with gathered.running():
        assert sharded(model) == BLOCK
        hidden = model(x)
        assert sharded(model) == BLOCK  # a block that is called is gathered for that time only
        with gathered.running():  # as an evaluation step does
            assert torch.equal(model.blocks[0][0](model.first(x)), hidden)
        assert sharded(model) == set()
    assert sharded(model) == ROOT | BLOCK


def test_parameters_are_sharded_after_an_error(model):
    gathered = GatheredModel(model)
    with pytest.raises(ZeroDivisionError), gathered.running():
        raise ZeroDivisionError
    assert sharded(model) == ROOT | BLOCK


def test_the_root_may_stay_gathered_until_its_backward_pass(model):
    gathered, x = GatheredModel(model), torch.ones(1, 3)
    with gathered.running(keeps_root=True):
        loss = model.blocks[0][0](model.first(x)).sum()
    assert sharded(model) == BLOCK
    gathered.prepare_backward(loss)
    loss.backward()
    assert sharded(model) == ROOT | BLOCK
    with gathered.running(keeps_root=True):
        model(x)
    gathered.release()
    assert sharded(model) == ROOT | BLOCK
    with pytest.raises(ZeroDivisionError), gathered.running(keeps_root=True):
        raise ZeroDivisionError
    assert sharded(model) == ROOT | BLOCK


@pytest.mark.parametrize("weight", [1, 0])
@pytest.mark.parametrize("is_custom", [False, True])
def test_all_is_sharded_when_callbacks_hear_of_a_step(model, weight, is_custom):
    sync = FSDPParallel(World(), torch.device("cpu")).step_sync(
        TrainedModules(model), torch.optim.SGD(model.parameters(), lr=0.1), is_custom=is_custom
    )
    seen = []
    with sync.step(lambda: None):
        loss = model(torch.ones(1, 3)).sum()
    if weight:
        sync.backward(loss, lambda it: (seen.append(sharded(model)), it.backward()), is_full=True)
        assert sharded(model) == ROOT | BLOCK
        assert seen == [ROOT | BLOCK if is_custom else BLOCK]
    sync.end_step()
    assert sharded(model) == ROOT | BLOCK
    sync.close()


def test_gradients_of_parts_reach_the_shards(model):
    whole = Model()
    whole.load_state_dict({n: local_tensor(p) for n, p in model.state_dict().items()})
    gathered, x = GatheredModel(model), torch.ones(2, 3)
    with gathered.running():
        loss = model.blocks[0][0](model.first(x)).square().sum() + model.first.bias.sum()
    gathered.prepare_backward(loss)
    loss.backward()
    (whole(x).square().sum() + whole.first.bias.sum()).backward()
    for (name, own), theirs in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(local_tensor(own.grad), theirs.grad), name
    assert sharded(model) == ROOT | BLOCK


def test_hooks_see_every_gradient_before_it_is_reduced(model):
    gathered, x = GatheredModel(model), torch.ones(2, 3)

    def double(gradient):
        gathered.finish_pass()
        return 2 * gradient

    grads = []
    for has_hooks in (False, True):
        handles = gathered.register_hooks(double) if has_hooks else []
        model.zero_grad()
        with gathered.running():
            loss = model.first(x).sum() + model(x).sum()
        gathered.prepare_backward(loss)
        loss.backward()
        grads.append([local_tensor(p.grad).clone() for p in model.parameters()])
    assert len(handles) == 4
    for once, twice in zip(*grads, strict=True):
        assert torch.allclose(2 * once, twice)


def test_a_gradient_that_comes_too_late_is_refused(model):
    gathered = GatheredModel(model)
    gathered.register_hooks(lambda gradient: None)
    x = torch.ones(2, 3)
    with gathered.running():
        early = model.blocks[0][0](torch.ones(2, 4)).sum()
        loss = model.blocks[0](model.first(x)).sum() + early  # autograd begins with the block
    gathered.prepare_backward(loss)
    with pytest.raises(ConfigurationError, match="a block or the modules inside it"):
        loss.backward()


@pytest.mark.parametrize("as_torch", ["2.11", "2.13"])
def test_a_late_gradient_is_known_by_the_state_that_each_release_keeps(as_torch):
    group = SimpleNamespace(_training_state=SimpleNamespace(name="POST_BACKWARD"))
    kept = {"2.11": {"_fsdp_param_group": group}, "2.13": {"_fsdp_param_groups": [group]}}
    unit = SimpleNamespace(_get_fsdp_state=lambda: SimpleNamespace(**kept[as_torch]))
    with pytest.raises(ConfigurationError, match="reaches 'weight' of SimpleNamespace after"):
        _before_accumulation(unit, "weight", lambda gradient: None, torch.ones(1))


@pytest.mark.parametrize("text", ["storage of size 0", "got mixed torch.Tensor and DTensor"])
def test_errors_of_torch_say_what_to_do(text):
    with pytest.raises(RuntimeError) as raised, explained():
        raise RuntimeError(text)
    assert "call the block itself" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError) as raised, explained():
        raise RuntimeError("another")
    assert not hasattr(raised.value, "__notes__")
