"""Batches without weight on some ranks, or skipped there; the others go on as one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.step_sync import StepSync
from fitkit.distributed.world import World

SCRIPT = Path(__file__).parents[1] / "scripts" / "weighted_run.py"


class Two(World):
    size = 2


def test_a_finite_loss_keeps_its_graph():
    model = nn.Linear(1, 1)
    sync = StepSync(model, TrainedModules(model), Two(), Parallel(Two()))
    loss = sync.zero_loss(model(torch.ones(1, 1)).sum())
    loss.backward()
    assert loss == 0.0
    assert model.weight.grad == 0.0


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


def test_every_case_is_compared(results):
    assert set(results["one"]) == set(NAMES)


@pytest.mark.ddp
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_follow_one(results, name):
    one = results["one"][name]
    assert one["weights"], "a case that compares nothing"
    for rank in ("rank0", "rank1"):
        found = results[rank][name]
        assert set(found) == {"weights", "loss", "counts"}
        assert found["weights"] == pytest.approx(one["weights"], abs=1e-9)
        assert found["loss"] == pytest.approx(one["loss"], abs=1e-9, nan_ok=True)
        assert found["counts"] == one["counts"]
    assert results["rank0"][name] == results["rank1"][name]
