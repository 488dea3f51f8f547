"""States of torchmetrics and of objects with ``merge_state``, merged over ranks."""

from __future__ import annotations

import pytest
import torch

from fitkit import CheckpointError, ConfigurationError
from fitkit.metrics import merge_states
from fitkit.metrics.meters import Meters
from fitkit.metrics.stateful import StatefulMetric

torchmetrics = pytest.importorskip("torchmetrics")
classification = torchmetrics.classification

CPU = torch.device("cpu")


def collection():
    names = ("MulticlassPrecision", "MulticlassRecall", "MulticlassAUROC")
    return torchmetrics.MetricCollection([getattr(classification, name)(3) for name in names])


class Counts:
    """An object without torchmetrics."""

    def __init__(self):
        self.total = torch.zeros((), dtype=torch.float64)

    def update(self, outputs, targets):
        self.total = self.total + outputs.double().sum()

    def merge_state(self, others):
        for other in others:
            self.total = self.total + other.total

    def compute(self):
        return self.total

    def reset(self):
        self.total = torch.zeros((), dtype=torch.float64)


KINDS = {
    "sums": lambda: classification.MulticlassAccuracy(3, average="micro"),
    "lists": lambda: classification.MulticlassAUROC(3),
    "matrix": lambda: classification.MulticlassConfusionMatrix(3),
    "collection": collection,
    "largest": torchmetrics.MaxMetric,
    "concatenated": torchmetrics.CatMetric,
    "unreduced": torchmetrics.PearsonCorrCoef,
    "composed": lambda: 2 * torchmetrics.SumMetric() + torchmetrics.MeanMetric(),
    "wrapper": lambda: torchmetrics.wrappers.MinMaxMetric(classification.MulticlassAccuracy(3)),
    "per class": lambda: torchmetrics.wrappers.ClasswiseWrapper(
        classification.MulticlassRecall(3, average=None)
    ),
    "merge_state": Counts,
}
OF_ONE_VALUE = {"largest", "concatenated", "composed"}


def batch_of(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(6, 3, generator=generator).softmax(1)
    targets = torch.randint(3, (6,), generator=generator)
    if kind == "unreduced":
        return outputs[:, 0], targets.float()
    return (outputs[:, 0], None) if kind in OF_ONE_VALUE else (outputs, targets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [[[1, 2], [3]], [[], [1, 2]], [[1], [], [2, 3], [4]]])
def test_the_value_is_that_of_one_process(kind, seeds, on_ranks):
    make = OneValue(kind) if kind in OF_ONE_VALUE else KINDS[kind]

    def compute(some, ranks):
        meter = StatefulMetric("m", make(), CPU)
        for seed in some:
            meter.update(*batch_of(kind, seed))
        return meter.compute(ranks)

    alone = StatefulMetric("m", make(), CPU)
    for seed in sorted(seed for some in seeds for seed in some):
        alone.update(*batch_of(kind, seed))
    values = on_ranks(compute, seeds)
    assert all(value == values[0] for value in values)
    assert sorted_values(values[0]) == pytest.approx(sorted_values(alone.compute()), rel=1e-5)


def sorted_values(values):
    """The order of samples in a concatenation is that of the ranks."""
    return sorted(values.values())


class OneValue:
    """Makes a metric of outputs alone, which contains another."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self):
        inner = KINDS[self.kind]()

        class Outputs(torchmetrics.Metric):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def update(self, outputs, targets):
                self.inner.update(outputs)

            def compute(self):
                return self.inner.compute()

            def reset(self):
                super().reset()
                self.inner.reset()

        return Outputs()


def test_no_rank_has_a_batch(on_ranks):
    def compute(make, ranks):
        return StatefulMetric("m", make(), CPU).compute(ranks)

    assert on_ranks(compute, [KINDS["lists"]] * 2) == [{}, {}]


def test_a_plain_object_is_refused_over_several_ranks():
    class Plain(Counts):
        merge_state = None

    assert Meters({"m": Plain()}, CPU).compute() == {}
    with pytest.raises(ConfigurationError, match=r"metric 'm' \(Plain\) accumulates"):
        Meters({"m": Plain()}, CPU, num_ranks=2)
    Meters({"m": Counts(), "t": KINDS["lists"]()}, CPU, num_ranks=2)


def test_what_may_be_merged_again():
    for kind in ("sums", "lists", "collection", "merge_state"):
        merge_states.require_mergeable_again("m", KINDS[kind](), 2)
    with pytest.raises(CheckpointError, match=r"metric 'm' .* resume on 2 ranks"):
        merge_states.require_mergeable_again("m", KINDS["unreduced"](), 2)


def test_weights_of_a_metric_are_not_exchanged():
    class Network(torchmetrics.Metric):
        def __init__(self):
            super().__init__()
            self.network = torch.nn.Linear(100, 100)
            self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")

        def update(self, outputs, targets):
            self.total += outputs.sum()

        def compute(self):
            return self.total

    assert list(merge_states.accumulated(Network())) == [".total"]


def test_states_return_to_their_device(accelerator):
    metric = KINDS["lists"]()
    state = merge_states.accumulated(metric)
    state = {name: [torch.rand(2, 3)] if "preds" in name else [torch.ones(2)] for name in state}
    merge_states.set_accumulated(metric, [state, state], torch.device("sim"))
    assert {one.device.type for one in metric.preds} == {"sim"}
    metric.compute_on_cpu = True
    merge_states.set_accumulated(metric, [state, state], torch.device("sim"))
    assert {one.device.type for one in metric.preds} == {"cpu"}
