"""Batches without weight on some ranks, or skipped there; the others go on as one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fitkit.core.errors import ConfigurationError
from fitkit.core.trained_modules import TrainedModules
from fitkit.core.types import Share
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World

SCRIPT = Path(__file__).parents[1] / "scripts" / "weighted_run.py"


class Two(World):
    """This rank, and another that has the same."""

    size = 2

    def sum(self, sums):
        return 2 * sums

    def copy_from_main(self, tensors):
        self.copied = list(tensors)

    def gather_all(self, value):
        return [value, self.others]


class Sync(StepSync):
    """Without a strategy."""

    def copy_buffers(self):
        pass


@pytest.fixture
def model():
    return nn.Linear(1, 1)


def test_a_finite_loss_without_weight_keeps_its_graph(model):
    sync = Sync(TrainedModules(model), None, Two())
    loss = sync.without_weight(model(torch.ones(1, 1)).sum())
    loss.backward()
    assert loss == 0.0
    assert model.weight.grad == 0.0


@pytest.mark.parametrize("loss", [None, torch.tensor(torch.nan), torch.tensor(torch.inf)])
def test_any_other_has_no_part_in_the_backward_pass(model, loss):
    assert Sync(TrainedModules(model), None, Two()).without_weight(loss) is None


def test_counts_of_all_ranks(model):
    sync = Sync(TrainedModules(model), None, Two())
    assert sync.sum_counts(3.0, 0.25) == (6, 0.5)


def test_parameters_that_only_the_optimizer_has_are_named_too(model):
    extra, late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([*model.parameters(), extra])
    world = Two()
    sync = Sync(TrainedModules(model), optimizer, world)
    names = list(sync.named_parameters())
    assert names == ["weight", "bias", "parameter 0 of the optimizer alone"]
    optimizer.add_param_group({"params": [late]})
    with sync.step(lambda: Share(1, 2)):
        assert [t.tolist() for t in world.copied] == [[1.0, 1.0]]  # it begins as on rank 0
    assert list(sync.named_parameters().values())[-1] is late


def test_weights_are_compared_after_the_first_step_and_after_a_pass(model):
    world = Two()
    sync = Sync(TrainedModules(model), None, world)
    world.others = [0.0, 0.0]
    with sync.step(lambda: Share(1, 2)):
        pass
    with pytest.raises(ConfigurationError, match="different models"), sync.step(lambda: None):
        pass
    with pytest.raises(ConfigurationError, match="different models"):
        sync.compare_weights()


@pytest.fixture(scope="module")
def results(tmp_path_factory, kit):
    """What one process and two have, by the name of the case."""
    return kit.results_of(SCRIPT, tmp_path_factory.mktemp("weighted"))


NAMES = (
    "tokens",
    "tokens in windows",
    "class weights",
    "elements",
    "step weight",
    "skipped before the model",
    "skipped after the model",
    "skipped everywhere",
    "padding on one rank",
    "padding everywhere",
    "skipped in windows",
    "batch norm skipped",
    "fsdp weight of zero",
)


@pytest.mark.ddp
@pytest.mark.slow
def test_every_case_is_compared(results):
    assert set(results["one"]) == set(NAMES)


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_follow_one(results, name):
    one = results["one"][name]
    assert one["weights"], "a case that compares nothing"
    for rank in ("rank0", "rank1"):
        found = results[rank][name]
        assert found["differ after a resume"] == []
        assert found["weights"] == pytest.approx(one["weights"], abs=1e-9)
        assert found["loss"] == pytest.approx(one["loss"], abs=1e-9, nan_ok=True)
        assert found["counts"] == one["counts"]
    assert results["rank0"][name] == results["rank1"][name]


@pytest.mark.ddp
@pytest.mark.slow
def test_three_processes_go_on_bit_for_bit(tmp_path, kit):
    """The sum of three numbers depends on their order, that of two does not."""
    found = kit.results_of(SCRIPT, tmp_path, processes=3)
    differing = {name: found["rank2"][name]["differ after a resume"] for name in NAMES}
    assert differing == {name: [] for name in NAMES}
    assert found["rank0"] == found["rank2"]
