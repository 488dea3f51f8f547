"""Sums of one pass: exact for any batches, saved in the middle, and states that are refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fitkit import Accuracy, CheckpointError, DataError, MeanMetric, Metric
from fitkit.core.tree import map_tensors
from fitkit.metrics.accumulators import MeanAccumulator, MetricAccumulator, make_accumulator
from fitkit.metrics.running_sum import FOLD_AFTER

CPU = torch.device("cpu")


class Spread(Metric):
    """The mean over batches of largest minus smallest output; ``add_up`` counts the batches."""

    def update(self, outputs, targets):
        return outputs.min(), outputs.max()

    def add_up(self, statistics):
        number = torch.full((1,), len(statistics), dtype=statistics.dtype)
        return torch.cat([statistics.sum(0), number])

    def compute(self, sums):
        return (sums[1] - sums[0]) / sums[2]


class Errors(MeanMetric):
    def values(self, outputs, targets):
        return outputs - targets


METRICS = [Errors(), Spread()]
NAMES = ["mean", "other"]


def feed(accumulator, batches):
    return [accumulator.measure("m", outputs, targets) for outputs, targets in batches]


def make_batches(number, kind=torch.float32):
    generator = torch.Generator().manual_seed(number)
    return [
        (torch.randn(3, generator=generator, dtype=kind), torch.zeros(3)) for _ in range(number)
    ]


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
@pytest.mark.parametrize("number", [1, FOLD_AFTER + 3])
@pytest.mark.parametrize("cut", [0, 1, FOLD_AFTER])
def test_a_metric_saved_between_batches_has_the_same_sums(metric, number, cut):
    batches = make_batches(number)
    plain, before, after = (make_accumulator(metric, CPU) for _ in range(3))
    feed(plain, batches)
    feed(before, batches[:cut])
    after.load_state_dict(before.state_dict())
    feed(after, batches[cut:])
    assert torch.equal(after.sums, plain.sums)
    assert plain.sums.dtype is torch.float64


@pytest.mark.parametrize(
    ("metric", "own"), [(Errors(), torch.mean), (Spread(), lambda x: x.max() - x.min())], ids=NAMES
)
def test_the_value_of_a_batch_is_its_own(metric, own):
    batches = make_batches(4)
    values = feed(make_accumulator(metric, CPU), batches)
    expected = [float(own(outputs)) for outputs, _ in batches]
    assert [float(value()) for value in values] == pytest.approx(expected, rel=1e-5)


@given(hits=st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=FOLD_AFTER + 9))
def test_booleans_are_counted(hits):
    class Hits(MeanMetric):
        def values(self, outputs, targets):
            return outputs

    accumulator = make_accumulator(Hits(), CPU)
    feed(accumulator, [(torch.tensor(one), None) for one in hits])
    flat = [hit for one in hits for hit in one]
    expected = [float(sum(flat)), float(len(flat))]
    assert (None if accumulator.sums is None else accumulator.sums.tolist()) == (
        expected if hits else None
    )
    loaded = make_accumulator(Hits(), CPU)
    loaded.load_state_dict(accumulator.state_dict())
    assert loaded.packed()[1] == (expected[1:] if hits else [])


def test_which_accumulator():
    class Changed(Errors):
        def update(self, outputs, targets):
            return [1.0, 2.0, 3.0]

    assert type(make_accumulator(Accuracy(), CPU)) is MeanAccumulator
    for metric in (Spread(), Changed()):
        assert type(make_accumulator(metric, CPU)) is MetricAccumulator


def test_each_batch_needs_as_many_statistics():
    class Growing(Metric):
        def update(self, outputs, targets):
            return [1.0] * len(outputs)

        def compute(self, sums):
            return sums[0]

    accumulator = make_accumulator(Growing(), CPU)
    with pytest.raises(DataError, match=r"metric 'm' .* received 2 after 1"):
        feed(accumulator, [(torch.ones(1), None), (torch.ones(2), None)])
    accumulator.reset()
    feed(accumulator, [(torch.ones(3), None)])


@pytest.mark.parametrize("sums", [torch.ones(2, 1), torch.ones(2, dtype=torch.complex64), [1.0]])
@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_a_state_that_was_altered_is_refused(metric, sums):
    accumulator = make_accumulator(metric, CPU)
    with pytest.raises(CheckpointError, match="sums of a metric in the checkpoint are invalid"):
        accumulator.load_state_dict({"sums": sums})
    with pytest.raises(CheckpointError, match="sums of a metric in the checkpoint are invalid"):
        accumulator.load_state_dict({"sums": None, "waiting": torch.ones(2, 3, 1)})


def test_a_mean_has_two_sums():
    with pytest.raises(CheckpointError, match="a mean has two sums, but 3"):
        make_accumulator(Errors(), CPU).load_state_dict({"sums": torch.ones(3)})


def test_a_metric_that_cannot_compute_ones_has_one_value():
    class Strict(Spread):
        def compute(self, sums):
            if sums[0] == 1.0:
                raise ValueError("these are no sums of real samples")
            return super().compute(sums)

    accumulator = make_accumulator(Strict(), CPU)
    (value,) = feed(accumulator, make_batches(1))
    assert float(value()) > 0


def test_values_that_do_not_count_are_left_out(accelerator):
    """Padding is NaN; counts are read once, also of a state in between."""

    class Masked(MeanMetric):
        def values(self, outputs, targets):
            return (outputs if self.is_float else outputs > 0), targets

    batches = [(torch.tensor([n, math.nan, -1.0]), torch.tensor([True, False, n % 3 == 0]))
               for n in range(FOLD_AFTER + 5)]  # fmt: skip
    for is_float, place in itertools.product((True, False), ("cpu", "sim")):
        metric, device = Masked(), torch.device(place)
        metric.is_float = is_float
        plain, before, after = (make_accumulator(metric, device) for _ in range(3))
        moved = [(outputs.to(device), counts.to(device)) for outputs, counts in batches]
        accelerator.waits.clear()
        feed(plain, moved)
        assert accelerator.waits == []
        feed(before, moved[:7])
        after.load_state_dict(map_tensors(Tensor.cpu, before.state_dict()))
        feed(after, moved[7:])
        kept = [one for outputs, counts in batches for one in outputs[counts].tolist()]
        total = sum(kept) if is_float else sum(one > 0 for one in kept)
        for one in (plain, after):
            assert one.sums.tolist() == [total, len(kept)]
            vector, numbers = one.packed()
            assert [*vector.tolist(), *numbers] == [total, len(kept)]


def test_what_counts_is_a_boolean_tensor_of_the_values_shape():
    class Masked(MeanMetric):
        def values(self, outputs, targets):
            return outputs, targets

    for counts in (torch.ones(2, dtype=torch.bool), torch.ones(3)):
        with pytest.raises(DataError, match=r"boolean tensor of the shape of the values .*\(3,\)"):
            feed(make_accumulator(Masked(), CPU), [(torch.ones(3), counts)])
