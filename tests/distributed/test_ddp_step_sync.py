"""Steps on several ranks; tests/scripts/steps_run.py has one of each spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed import ddp_step_sync
from fitkit.distributed.ddp_step_sync import DDPStepSync
from fitkit.distributed.loss_gate import LossGate
from fitkit.distributed.world import World
from fitkit.runtime.backward import run_backward

SCRIPT = Path(__file__).parents[1] / "scripts" / "steps_run.py"


class Two(World):
    """Rank 1 of two; rank 0 has sevens."""

    size = 2
    rank = 1

    def __init__(self, *, value=7):
        self.value = value
        self.copied = []

    def copy_from_main(self, tensors):
        for tensor in tensors:
            self.copied.append(tensor.dtype)
            tensor.fill_(self.value)


@pytest.fixture
def built(monkeypatch):
    """The options of each ``DistributedDataParallel`` that is built, and what it wraps."""
    found = []

    class StandIn:
        def __init__(self, module, **options):
            self.module, self.reducer = module, self
            found.append((module, options))

        def __call__(self, loss):
            return self.module(loss)

        def _rebuild_buckets(self):
            return False

        def _remove_autograd_hooks(self):
            found.append("removed")

    monkeypatch.setattr(ddp_step_sync, "DistributedDataParallel", StandIn)
    return found


def make_sync(model, world=None, extra=(), **options):
    optimizer = torch.optim.SGD([*model.parameters(), *extra])
    return DDPStepSync(TrainedModules(model), optimizer, world or Two(), options)


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_buckets_are_arranged_before_the_first_step_and_nothing_hears_of_it(group_of_one):
    model = nn.Sequential(nn.Linear(2, 3), nn.Embedding(4, 3, sparse=True))
    called = []
    for parameter in model.parameters():
        parameter.register_hook(called.append)
        parameter.register_post_accumulate_grad_hook(called.append)
    kept = model[0].weight.grad = torch.ones(3, 2)
    ddp = DistributedDataParallel(LossGate(TrainedModules(model), dict(model.named_parameters())))
    ddp_step_sync._arrange_buckets(ddp, list(model.parameters()))
    assert not called
    assert model[0].weight.grad is kept
    assert model[0].bias.grad is None
    assert not ddp.reducer._rebuild_buckets(), "they are not arranged again"
    indices = torch.tensor([1])
    loss = model[0](torch.ones(1, 2)).sum() + model[1](indices).sum()
    run_backward(*ddp_step_sync.pass_gate(ddp, loss))
    assert len(called) == 2 * 3
    assert not ddp.reducer._rebuild_buckets()
    assert torch.equal(model[0].weight.grad, torch.full((3, 2), 2.0))


def test_options_reach_torch(built):
    model = nn.Linear(1, 1)
    given = [("bias", model.bias)]
    make_sync(model, bucket_cap_mb=3, delay_all_reduce_named_params=given)
    ((module, options),) = built
    assert module.model is model
    assert options == {
        "bucket_cap_mb": 3,
        "delay_all_reduce_named_params": [("model.bias", model.bias)],
    }


def test_host_tensors_have_a_group_of_their_own(built):
    class Beside(Two):
        group = "the group for host tensors"

    make_sync(nn.Linear(1, 1), Beside())
    assert built[0][1] == {"process_group": "the group for host tensors"}


def test_a_tensor_that_only_the_optimizer_has_is_wrapped_as_it_is(built):
    model, extra = nn.Linear(1, 1), torch.zeros(2, requires_grad=True)
    make_sync(model, extra=[extra])
    assert any(p is extra for p in built[0][0].parameters())


def test_a_batch_inside_a_window_is_not_communicated_and_one_without_weight_not_computed(built):
    model = nn.Linear(1, 1)
    sync, losses = make_sync(model), []
    append = lambda loss, *others: losses.append(loss)  # noqa: E731
    sync.backward(None, append, is_full=False)
    assert losses == []
    loss = model(torch.ones(1, 1)).sum()
    sync.backward(loss, append, is_full=False)
    assert losses == [loss]
    sync.backward(None, append, is_full=True)
    losses[1].backward()
    assert model.weight.grad is None


def test_ddp_is_built_again_when_something_else_is_trained(built):
    model = nn.Linear(1, 1)
    sync = make_sync(model)
    for is_trained in (True, False, False, True):
        model.bias.requires_grad_(is_trained)
        sync.backward(model(torch.ones(1, 1)).sum(), run_backward, is_full=True)
    assert len(built) == 3
    assert built[-1][1] == {"init_sync": False}  # which would change weights that autograd needs


def test_no_hooks_are_left_at_the_end(built):
    """Of a run that an error has ended in a backward pass, which the program keeps."""
    sync = make_sync(nn.Linear(2, 1))
    sync.close()
    sync.close()
    assert built[1:] == ["removed"]


def test_nothing_is_wrapped_where_nothing_is_trained(built):
    make_sync(nn.Linear(1, 1).requires_grad_(False))
    assert built == []


def test_steps_with_optimizers_of_their_own_begin_with_the_values_of_rank_0(built):
    model = nn.BatchNorm1d(2)
    DDPStepSync(TrainedModules(model), None, Two(), {})
    assert built == []
    assert {float(value) for t in model.state_dict().values() for value in t.flatten()} == {7.0}


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({}, True),
        ({"broadcast_buffers": False}, False),
        ({"forward_sync_buffers": False}, False),
        ({"broadcast_buffers": None, "forward_sync_buffers": True}, True),
    ],
)
def test_buffers_are_copied_before_each_step_unless_the_user_declined(built, options, copies):
    model = nn.BatchNorm1d(2)
    sync = make_sync(model, **options)
    with sync.step(lambda: None):
        pass
    assert bool(model.num_batches_tracked) is copies


# ---- real processes -----------------------------------------------------------------------------


NAMES = (
    "model",
    "module",
    "parts",
    "closure",
    "direct use of parameters",
    "several passes",
    "checkpointing",
    "reentrant checkpointing",
    "second order",
    "loss module",
    "loss module in a step",
    "parameter of the optimizer alone",
    "tensor of the optimizer alone",
    "unused",
    "unused in windows",
    "windows",
    "weights of zero",
    "weights of zero in windows",
    "weights of zero, unused",
    "sparse",
    "bucket views",
    "static graph",
    "static graph in windows",
    "frozen and unfrozen",
    "own backward with clipping",
    "own backward, one rank without samples",
    "own backward, sparse",
    "adversaries",
    "own accumulation",
    "line search",
    "own loss scaler",
    "own backward, through the model",
    "own reentrant checkpoints",
    "backward before that of the loss",
    "backward before that of the loss in windows",
    "own backward later",
    "copies that are trained inside",
)
SHARDED = (
    "model",
    "parts",
    "direct use of parameters",
    "several passes",
    "checkpointing",
    "loss module",
    "loss module in a step",
    "frozen and unfrozen",
    "windows",
    "weights of zero",
    "own backward with clipping",
    "own backward, one rank without samples",
    "adversaries",
    "own accumulation",
    "own backward, through the model",
    "backward before that of the loss",
    "own backward later",
    "inside blocks",
    "own backward inside blocks",
)
NAMES = (*NAMES, *(f"sharded: {name}" for name in SHARDED))


# Without -m slow.
FEW = (
    "module",
    "parts",
    "closure",
    "loss module",
    "tensor of the optimizer alone",
    "unused in windows",
    "weights of zero",
    "frozen and unfrozen",
    "adversaries",
    "line search",
    "own backward, one rank without samples",
    "sharded: parts",
    "sharded: direct use of parameters",
    "own backward, through the model",
    "sharded: own backward, through the model",
    "sharded: adversaries",
    "sharded: inside blocks",
)


@pytest.fixture(scope="module")
def few(tmp_path_factory, kit):
    """What one process and two have, by the name of the case."""
    return kit.results_of(SCRIPT, tmp_path_factory.mktemp("steps"), *FEW)


@pytest.fixture(scope="module")
def results(tmp_path_factory, kit):
    """The same for all cases."""
    return kit.results_of(SCRIPT, tmp_path_factory.mktemp("steps"))


@pytest.mark.slow
@pytest.mark.ddp
def test_every_case_is_compared(results):
    assert set(results["one"]) == set(NAMES)


def assert_follows(results, name):
    one = results["one"][name]
    for rank in ("rank0", "rank1"):
        found = results[rank][name]
        assert set(found) == {"weights", "loss", "counts"}
        assert found["weights"] == pytest.approx(one["weights"], abs=1e-9)
        assert found["loss"] == pytest.approx(one["loss"], abs=1e-9)
        assert found["counts"] == one["counts"]
        assert any(abs(weight) > 0.1 for weight in found["weights"])
    assert results["rank0"][name] == results["rank1"][name]


@pytest.mark.ddp
@pytest.mark.parametrize("name", FEW)
def test_two_processes_follow_one(few, name):
    assert_follows(few, name)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FEW)))
def test_two_processes_follow_one_with_any_other_step(results, name):
    assert_follows(results, name)
