"""Metric states of several ranks merged into one, and the zeros of the other ranks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit import Accuracy, CheckpointError, EpochMetric, Metric, StepOutput
from fitkit.metrics.merge_for_resume import merge_meter_states, zero_meter_state
from fitkit.metrics.meters import Meters

torchmetrics = pytest.importorskip("torchmetrics")

CPU = torch.device("cpu")


class Moments(Metric):
    def update(self, outputs, targets):
        return outputs.sum(), outputs.square().sum(), float(outputs.numel())

    def compute(self, sums):
        return sums[1] / sums[2] - (sums[0] / sums[2]) ** 2


METRICS = {
    "accuracy": Accuracy(),
    "moments": Moments(),
    "mean": lambda outputs, targets: outputs.mean(),
}


def output(seed, **logs):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(2 + seed % 3, 3, generator=generator, dtype=torch.float64)
    targets = torch.arange(len(outputs)) % 3
    return StepOutput(outputs.square().mean(), outputs, targets, logs=logs)


def meters_of(seeds, **logs):
    meters = Meters(METRICS, CPU)
    for seed in seeds:
        one = output(seed, **logs)
        meters.update(one, len(one.outputs))
    return meters


def computed(state):
    meters = Meters(METRICS, CPU)
    meters.load_state_dict(state)
    return meters.compute()


RANKS = st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=2, max_size=4)


@given(ranks=RANKS)
def test_merged_sums_are_those_of_all_batches(ranks):
    merged = computed(merge_meter_states([meters_of(seeds).state_dict() for seeds in ranks]))
    expected = meters_of([seed for seeds in ranks for seed in seeds]).compute()
    assert merged.keys() == expected.keys()
    assert merged == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(ranks=RANKS)
def test_zeros_of_other_ranks_change_nothing(ranks):
    merged = merge_meter_states([meters_of(seeds).state_dict() for seeds in ranks])
    with_zeros = merge_meter_states([merged, zero_meter_state(merged)])
    assert computed(with_zeros) == computed(merged)


def test_ranks_with_zeros_add_nothing(on_ranks):
    """Rank 0 has the merged sums, and the others none: also where a rank has seen no batch."""
    one, none = meters_of([1], scale=3.0), meters_of([])
    merged = merge_meter_states([one.state_dict(), none.state_dict()])
    states = [merged, zero_meter_state(merged)]

    def compute(state, ranks):
        meters = Meters(METRICS, CPU)
        meters.load_state_dict(state)
        return meters.compute(ranks)

    assert on_ranks(compute, states) == [one.compute()] * 2


def test_waiting_rows_of_a_device_without_float64_are_kept():
    """Such a device leaves rows that are not added yet."""
    waiting = {"sums": None, "waiting": torch.ones(2, 3)}
    states = [{**meters_of([]).state_dict(), "metrics": {"moments": waiting}} for _ in range(2)]
    merged = merge_meter_states(states)["metrics"]["moments"]
    assert torch.equal(merged["waiting"], torch.ones(4, 3))
    assert zero_meter_state(states[0])["metrics"]["moments"] == {"sums": None}


def test_logs_that_only_some_ranks_have():
    one, two = meters_of([1], scale=2.0), meters_of([2])
    merged = computed(merge_meter_states([two.state_dict(), one.state_dict()]))
    assert merged["scale"] == 2.0


def test_a_single_state_stays_as_it_is():
    state = {"metrics": {"torchmetrics": {"updated": True, "state": {}}}}
    assert merge_meter_states([state]) is state


class Largest:
    """A metric with the interface of torcheval."""

    def __init__(self):
        self.reset()

    def update(self, outputs, targets):
        self.largest = max(self.largest, float(outputs.max()))

    def merge_state(self, others):
        self.largest = max([self.largest, *(other.largest for other in others)])

    def compute(self):
        return self.largest

    def reset(self):
        self.largest = -math.inf


def accumulating():
    classification = torchmetrics.classification
    return {
        "auroc": classification.MulticlassAUROC(3),
        "f1": torchmetrics.MetricCollection([classification.MulticlassF1Score(3)]),
        "largest": Largest(),
        "epoch": EpochMetric(lambda outputs, targets: outputs[targets == 1].std()),
    }


def test_what_accumulates_by_itself_is_merged(on_ranks):
    """From three ranks, one of which has no batch, to one and to two that go on."""
    seeds = [[1, 2, 5], [3], []]
    saved = [fed(Meters(accumulating(), CPU), *some).state_dict() for some in seeds]
    merged = merge_meter_states(saved)
    expected = fed(Meters(accumulating(), CPU), 1, 3, 2, 5, 8, 9).compute()
    one = Meters(accumulating(), CPU)
    one.load_state_dict(merged)
    assert fed(one, 8, 9).compute() == pytest.approx(expected, rel=1e-6)

    def go_on(place, ranks):
        state, seed = place
        meters = Meters(accumulating(), CPU, num_ranks=2)
        meters.load_state_dict(state)
        return fed(meters, seed).compute(ranks)

    first, second = on_ranks(go_on, [(merged, 8), (zero_meter_state(merged), 9)])
    assert first == second == pytest.approx(expected, rel=1e-6)


def test_from_one_rank_to_two(on_ranks):
    state = fed(Meters(accumulating(), CPU), 1, 2).state_dict()
    expected = fed(Meters(accumulating(), CPU), 1, 2).compute()

    def go_on(own, ranks):
        meters = Meters(accumulating(), CPU, num_ranks=2)
        meters.load_state_dict(own)
        return meters.compute(ranks)

    both = on_ranks(go_on, [merge_meter_states([state]), zero_meter_state(state)])
    assert both == [pytest.approx(expected, rel=1e-6)] * 2


def fed(meters, *seeds):
    for seed in seeds:
        one = output(seed)
        meters.update(one, len(one.outputs))
    return meters


class Plain:
    """A metric of which nothing says how to merge it."""

    def __init__(self):
        self.sum = 0.0

    def update(self, outputs, targets):
        self.sum += float(outputs.sum())

    def compute(self):
        return self.sum

    def reset(self):
        self.sum = 0.0


class Mean(torchmetrics.Metric):
    """A mean of means cannot be merged twice."""

    def __init__(self):
        super().__init__()
        self.add_state("mean", torch.zeros(()), dist_reduce_fx="mean")

    def update(self, outputs, targets):
        self.mean = outputs.mean()

    def compute(self):
        return self.mean


@pytest.mark.parametrize("metric", [Mean(), Plain()])
def test_what_cannot_be_merged_is_refused_when_it_is_loaded(metric):
    states = [fed(Meters({"m": metric}, CPU), seed).state_dict() for seed in (1, 2, 3)]
    with pytest.raises(CheckpointError, match=r"metric 'm' accumulates by itself.*on 3 ranks"):
        Meters({"m": metric}, CPU).load_state_dict(merge_meter_states(states))


def test_entries_of_functions_are_merged():
    def function(outputs, targets):
        return {"mean": outputs.mean(), "four": 4.0}

    states = [fed(Meters({"m": function}, CPU), *seeds).state_dict() for seeds in ([], [1, 2], [3])]
    meters = Meters({"m": function}, CPU)
    meters.load_state_dict(merge_meter_states(states))
    expected = fed(Meters({"m": function}, CPU), 1, 2, 3).compute()
    assert meters.compute() == pytest.approx(expected, rel=1e-12)
