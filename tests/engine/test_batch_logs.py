"""The logs of batches of one rank, and of several; real ranks are in ``tests/distributed``."""

from __future__ import annotations

import pytest
import torch

from fitkit import Accuracy, Event
from fitkit.core.types import StepOutput
from fitkit.engine.batch_logs import BatchLogs, BatchLogsOfRanks
from fitkit.metrics.meters import Meters

CPU = torch.device("cpu")
TRAIN = Event.TRAIN_BATCH_END


class Twice:
    """Two ranks that have the same sums."""

    def __init__(self):
        self.reductions = 0

    def sum(self, sums):
        self.reductions += 1
        return 2 * sums

    def gather_all(self, value):
        return [value, value]


@pytest.fixture
def meters():
    return Meters({"accuracy": Accuracy(), "mean": lambda o, t: o.mean()}, CPU)


def update(meters, loss=3.0, weight=5):
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    output = StepOutput(torch.tensor(loss), outputs, torch.tensor([0, 0, 1, 1]))
    return meters.update(output, 4, weight)


def test_one_rank_has_its_values(meters):
    logs = BatchLogs().of(TRAIN, 1, meters, update(meters))
    assert dict(logs) == {"loss": 3.0, "accuracy": 0.75, "mean": pytest.approx(0.75)}
    assert logs.of_this_rank["loss"] == 3.0


def test_values_over_ranks_are_read_in_some_batches_only(meters):
    ranks = Twice()
    logs = BatchLogsOfRanks(ranks, CPU, {TRAIN: [2, 3]}, names_vary=True)
    found = {n: logs.of(TRAIN, n, meters, update(meters)) for n in range(1, 7)}
    assert [n for n, one in found.items() if dict(one)] == [2, 3, 4, 6]
    assert ranks.reductions == 4
    assert dict(found[2]) == {"loss": 3.0, "accuracy": 0.75, "mean": pytest.approx(0.75)}
    assert [one.of_this_rank["loss"].item() for one in found.values()] == [3.0] * 6


def test_events_that_nobody_reads_cost_nothing(meters):
    ranks = Twice()
    logs = BatchLogsOfRanks(ranks, CPU, {Event.TEST_BATCH_END: [1]}, names_vary=True)
    assert dict(logs.of(TRAIN, 1, meters, update(meters))) == {}
    assert ranks.reductions == 0


class With:
    """This rank, and another one with the sums of ``other``."""

    def __init__(self, other):
        self.other = other

    def sum(self, sums):
        marks = len(sums) - 6  # loss, accuracy and mean have two sums each
        return sums + torch.cat([sums[:marks], torch.tensor(self.other, dtype=torch.float64)])

    def gather_all(self, value):
        return [value, value]


def test_each_value_is_weighted_as_the_mean_of_an_epoch(meters):
    other = [1.0 * 15, 15.0, 3.0, 12.0, 2.0 * 12, 12.0]  # a loss of 1 over 15, 12 samples
    logs = BatchLogsOfRanks(With(other), CPU, {TRAIN: [1]}, names_vary=False)
    found = logs.of(TRAIN, 1, meters, update(meters))
    assert found["loss"] == (3.0 * 5 + 1.0 * 15) / 20
    assert found["accuracy"] == (3 + 3) / (4 + 12)
    assert found["mean"] == pytest.approx((0.75 * 4 + 2.0 * 12) / 16)


def test_a_loss_without_weight_counts_nothing(meters):
    other = [1.0 * 15, 15.0, 3.0, 12.0, 2.0 * 12, 12.0]
    logs = BatchLogsOfRanks(With(other), CPU, {TRAIN: [1]}, names_vary=False)
    values = update(meters, float("nan"), torch.tensor(0.0))
    assert logs.of(TRAIN, 1, meters, values)["loss"] == 1.0
