"""Progress inside an epoch, redistributed over the same or another number of ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fitkit import Accuracy
from fitkit.core.errors import CheckpointError
from fitkit.core.types import StepOutput
from fitkit.handler.redistribute_progress import redistribute_progress
from fitkit.metrics.merge_for_resume import merge_meter_states
from fitkit.metrics.meters import Meters

CPU = torch.device("cpu")
METRICS = {"accuracy": Accuracy(), "mean": lambda outputs, targets: outputs.mean()}


def world(rank, size):
    return SimpleNamespace(rank=rank, size=size, is_main=rank == 0)


def output(seed, count, **logs):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return StepOutput(outputs.square().mean(), outputs, torch.arange(count) % 3, logs=logs)


def meters_of(*seeds, **logs):
    meters = Meters(METRICS, CPU)
    for seed in seeds:
        meters.update(output(seed, seed + 1, **logs), seed + 1)
    return meters


def progress_of(*processes, window=None):
    """The progress in a checkpoint of several ranks: one list of seeds for each."""
    parts = [
        {
            "meters": {
                "train": meters_of(*seeds).state_dict(),
                "validation": meters_of().state_dict(),
            },
            "window": {} if window is None else window(rank),
        }
        for rank, seeds in enumerate(processes)
    ]
    return {"state": {}, "unheard": None, **parts[0], "others": parts[1:]}


def computed(state):
    meters = Meters(METRICS, CPU)
    meters.load_state_dict(state)
    return meters.compute()


def test_as_many_as_before_go_on_with_their_own():
    progress = progress_of([1, 2], [3])
    for rank, seeds in enumerate(([1, 2], [3])):
        mine = redistribute_progress(progress, world(rank, 2))
        assert computed(mine["meters"]["train"]) == meters_of(*seeds).compute()


@pytest.mark.parametrize("size", [1, 3])
def test_others_go_on_with_the_sums_of_all(size):
    progress = progress_of([1, 2], [3, 4])
    parts = [redistribute_progress(progress, world(rank, size)) for rank in range(size)]
    assert computed(parts[0]["meters"]["train"]) == pytest.approx(meters_of(1, 2, 3, 4).compute())
    for part in parts[1:]:
        assert computed(part["meters"]["train"]) == {}  # so they add nothing


def test_a_checkpoint_between_epochs_has_nothing_to_deal_out():
    assert redistribute_progress({}, world(1, 2)) == {}


def window(rank):
    gradient = torch.tensor([float(rank), 10.0])
    return {"batches": 2, "samples": 9, "expected": 12, "gradients": {"weight": gradient}}


@pytest.mark.parametrize("size", [1, 3])
def test_others_go_on_with_the_average_of_a_window(size):
    progress = progress_of([1], [2], window=window)
    for rank in range(size):
        mine = redistribute_progress(progress, world(rank, size))["window"]
        assert (mine["batches"], mine["samples"], mine["expected"]) == (2, 9, 12)
        assert mine["gradients"]["weight"].tolist() == [0.5, 10.0]


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_gradient_that_a_process_lacks_counts_as_zero(lacking):
    progress = progress_of([1], [2], window=window)
    everybody = [progress, *progress["others"]]
    everybody[lacking]["window"]["gradients"] = {}
    mine = redistribute_progress(progress, world(0, 1))["window"]
    other = window(1 - lacking)["gradients"]["weight"]
    assert mine["gradients"]["weight"].tolist() == (other / 2).tolist()


def test_the_sums_of_one_are_those_themselves():
    state = meters_of(1).state_dict()
    assert merge_meter_states([state]) is state


def test_further_values_of_a_step_are_merged_too():
    states = [meters_of(1, own=2.0).state_dict(), meters_of(2).state_dict()]
    assert computed(merge_meter_states(states))["own"] == 2.0


def test_whoever_has_nothing_adds_nothing():
    states = [meters_of(1, 2).state_dict(), meters_of().state_dict()]
    assert computed(merge_meter_states(states)) == pytest.approx(meters_of(1, 2).compute())


class Accumulates:
    """A metric with the interface of torchmetrics."""

    def __init__(self):
        self.total = torch.zeros(())

    def update(self, outputs, targets):
        self.total += outputs.sum()

    def compute(self):
        return self.total

    def reset(self):
        self.total = torch.zeros(())


def test_a_metric_that_accumulates_by_itself_cannot_be_dealt_out():
    meters = Meters({"own": Accumulates()}, CPU)
    merged = merge_meter_states([meters.state_dict(), meters.state_dict()])
    with pytest.raises(CheckpointError, match="resume on 2 ranks, or from a checkpoint at"):
        meters.load_state_dict(merged)


def test_who_shares_one_window_goes_on_with_its_average_and_with_own_sums():
    """Written by ranks with whole models, read by as many ranks with sharded ones."""
    progress = progress_of([1, 2], [3], window=window)
    for rank, seeds in enumerate(([1, 2], [3])):
        mine = redistribute_progress(progress, world(rank, 2), is_sharded=True)
        assert computed(mine["meters"]["train"]) == meters_of(*seeds).compute()
        assert mine["window"]["gradients"]["weight"].tolist() == [0.5, 10.0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_window_that_was_one_stays_as_it_is(size):
    """Written by ranks with sharded models: the others have sums, but no window."""
    progress = progress_of([1], [2], window=window)
    for other in progress["others"]:
        del other["window"]
    whole = window(0)
    for rank in range(size):
        for is_sharded in {size > 1, False}:
            mine = redistribute_progress(progress, world(rank, size), is_sharded=is_sharded)[
                "window"
            ]
            assert mine["gradients"]["weight"].tolist() == whole["gradients"]["weight"].tolist()


@pytest.mark.parametrize("size", [2, 3])
def test_no_window_is_none_for_who_keeps_parts(size):
    progress = progress_of([1], [2])
    for rank in range(size):
        assert redistribute_progress(progress, world(rank, size), is_sharded=True)["window"] == {}
