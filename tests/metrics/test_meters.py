"""Sums over a phase: exact for any split into batches, resumable in the middle."""

from __future__ import annotations

import gc
import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit import (
    Accuracy,
    Callback,
    CheckpointError,
    ConfigurationError,
    DataError,
    EpochMetric,
    MeanAbsoluteError,
    MeanMetric,
    MeanSquaredError,
    Metric,
    NNHandler,
    R2Score,
    StepOutput,
    TopKAccuracy,
)
from fitkit.core.tree import iterate_tensors
from fitkit.distributed.world import World
from fitkit.metrics.meters import Meters
from fitkit.metrics.running_sum import FOLD_AFTER
from fitkit.metrics.weighted_mean import WeightedMean

torchmetrics = pytest.importorskip("torchmetrics")

CPU = torch.device("cpu")


def classes():
    return {
        "function": lambda outputs, targets: (outputs.argmax(1) == targets).float().mean(),
        "accuracy": Accuracy(),
        "top2": TopKAccuracy(k=2),
        "torchmetrics": torchmetrics.classification.MulticlassAccuracy(4, average="micro"),
        "collection": torchmetrics.MetricCollection(
            {
                "macro": torchmetrics.classification.MulticlassAccuracy(4, average="macro"),
                "auroc": torchmetrics.classification.MulticlassAUROC(4, thresholds=20),
            }
        ),
    }


def output(outputs, targets, **fields):
    loss = torch.nn.functional.cross_entropy(outputs, targets)
    return StepOutput(loss, outputs, targets, **fields)


def feed(meters, outputs, targets, sizes):
    for x, y in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        meters.update(output(x, y), len(x))


def scores(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    # probabilities: torchmetrics normalizes a batch of logits or not by what it happens to hold
    outputs = torch.randn(total, 4, generator=generator).softmax(1)
    return outputs, torch.randint(4, (total,), generator=generator)


SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=12)
@given(sizes=SIZES, seed=st.integers(0, 1000))
def test_any_split_has_the_values_of_the_whole(sizes, seed):
    outputs, targets = scores(sizes, seed)
    split, whole = Meters(classes(), CPU), Meters(classes(), CPU)
    feed(split, outputs, targets, sizes)
    feed(whole, outputs, targets, [len(outputs)])
    right = (outputs.argmax(1) == targets).double().mean().item()
    values = split.compute()
    assert values == pytest.approx(whole.compute(), rel=1e-6)
    for name in ("function", "accuracy", "torchmetrics"):
        assert values[name] == pytest.approx(right, rel=1e-6)
    assert list(values) == [
        "loss",
        "function",
        "accuracy",
        "top2",
        "torchmetrics",
        "collection_auroc",
        "collection_macro",
    ]


@settings(max_examples=12)
@given(sizes=SIZES, seed=st.integers(0, 1000), cut=st.integers(0, 12))
def test_a_cut_in_the_middle_changes_no_bit(sizes, seed, cut, tmp_path_factory):
    outputs, targets = scores(sizes, seed)
    cut = min(cut, len(sizes))
    parts = list(zip(outputs.split(sizes), targets.split(sizes), strict=True))
    plain, before, after = (Meters(classes(), CPU) for _ in range(3))
    for x, y in parts:
        plain.update(output(x, y), len(x))
    for x, y in parts[:cut]:
        before.update(output(x, y), len(x))
    path = tmp_path_factory.mktemp("meters") / "state.pth"
    torch.save(before.state_dict(), path)
    after.load_state_dict(torch.load(path, weights_only=True))
    for x, y in parts[cut:]:
        after.update(output(x, y), len(x))
    assert after.compute() == plain.compute()


@pytest.mark.parametrize("count", [FOLD_AFTER - 1, FOLD_AFTER, FOLD_AFTER + 1, 3 * FOLD_AFTER + 5])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_folding_does_not_change_the_mean(count, kind):
    mean = WeightedMean()
    for number in range(count):
        mean.add(kind(float(number)), weight=number + 1)
    total, weight = mean.sums()
    assert weight == sum(range(1, count + 1))
    assert total.item() == sum(n * (n + 1) for n in range(count))
    copy = WeightedMean()
    copy.load_state_dict(mean.state_dict())
    assert copy.sums() == mean.sums()


def test_many_small_values_are_added_in_double_precision():
    mean = WeightedMean()
    for _ in range(20_000):
        mean.add(torch.tensor(0.1), weight=1)
    total, weight = mean.sums()
    assert (total / weight).item() == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)


def test_values_of_mixed_kinds_are_added():
    mean = WeightedMean()
    for value in (1, 2.0, torch.tensor(3.0), torch.tensor(4.0, dtype=torch.float16)):
        mean.add(value, weight=1)
    assert mean.sums()[0].item() == 10.0


def test_reset_forgets_everything():
    meters = Meters(classes(), CPU)
    outputs, targets = scores([5], 0)
    feed(meters, outputs, targets, [5])
    first = meters.compute()
    meters.update(output(outputs, 3 - targets, logs={"extra": 1.0}), 5)
    meters.reset()
    feed(meters, outputs, targets, [5])
    assert meters.compute() == first
    assert "extra" not in meters.running()


def test_running_is_the_mean_so_far_without_what_accumulates_by_itself():
    meters = Meters(classes(), CPU)
    assert meters.running() == {}
    outputs, targets = scores([3, 2], 1)
    feed(meters, outputs, targets, [3, 2])
    running, final = meters.running(), meters.compute()
    assert running == {name: final[name] for name in ("loss", "function", "accuracy", "top2")}


def test_training_and_validation_do_not_share_a_torchmetrics_object():
    metric = torchmetrics.classification.MulticlassAccuracy(4)
    train, validation = Meters({"a": metric}, CPU), Meters({"a": metric}, CPU)
    outputs, targets = scores([6], 2)
    alone = Meters({"a": metric}, CPU)
    for meters in (train, alone):
        feed(meters, outputs, targets, [6])
    feed(validation, outputs, (targets + 1) % 4, [6])
    validation.reset()
    assert train.compute() == alone.compute()
    assert metric.update_called is False


def test_the_batch_s_values_are_its_own_and_read_late():
    reads = []

    class Counted(Metric):
        def update(self, outputs, targets):
            return torch.tensor([outputs.sum(), 1.0])

        def compute(self, sums):
            reads.append(sums)
            return sums[0]

    meters = Meters({"sum": Counted()}, CPU)
    batch = meters.update(StepOutput(torch.tensor(1.0), torch.ones(3), None), 3)
    assert [sums.tolist() for sums in reads] == [[1.0, 1.0]]  # what shows that it has one value
    assert float(batch["sum"]()) == 3.0


def test_values_carry_no_graph():
    meters = Meters(classes(), CPU)
    outputs, targets = scores([3], 1)
    outputs.requires_grad_()
    batch = meters.update(output(outputs, targets, logs={"extra": outputs.sum()}), 3)
    assert not batch["loss"].requires_grad
    assert not batch["extra"].requires_grad
    assert not batch["function"].requires_grad


def test_one_reduction_serves_everything():
    calls = []

    class Doubled(World):
        def sum(self, sums):
            calls.append(sums.dtype)
            return 2 * sums

    meters = Meters({"mae": MeanAbsoluteError(), "f": lambda o, t: torch.tensor(0.5)}, CPU)
    meters.update(StepOutput(torch.tensor(3.0), torch.ones(2), torch.zeros(2)), 2)
    assert meters.compute(Doubled()) == {"loss": 3.0, "mae": 1.0, "f": 0.5}
    assert calls == [torch.float64]


def test_the_loss_has_a_weight_of_its_own():
    meters = Meters({"f": lambda outputs, targets: outputs.mean()}, CPU)
    batches = [(1.0, 2, 30), (4.0, 6, torch.tensor(10.0)), (math.nan, 2, 0), (3.0, 2, 0.5)]
    for loss, size, weight in batches:
        output = StepOutput(torch.tensor(loss), torch.full((size,), float(size)), logs={"own": 1})
        assert meters.update(output, size, weight)["own"] == 1
    values = meters.compute()
    assert values["loss"] == pytest.approx((30 + 40 + 1.5) / 40.5, rel=1e-12)
    assert values["f"] == (2 * 2 + 6 * 6 + 2 * 2 + 2 * 2) / 12
    assert values["own"] == 1.0


def test_a_loss_whose_weights_are_all_zero_is_nan():
    meters = Meters({}, CPU)
    meters.update(StepOutput(torch.tensor(math.nan)), 4, 0)
    meters.update(StepOutput(torch.tensor(3.0)), 4, torch.tensor(0))
    assert math.isnan(meters.compute()["loss"])
    meters.reset()
    assert meters.compute() == {}


def test_ranks_log_by_name(on_ranks):
    """In any order; a name that a rank never logs, and a rank without a batch, wait for nobody."""

    def compute(batches, ranks):
        meters = Meters({"f": lambda outputs, targets: outputs.mean(), "a": Accuracy()}, CPU)
        for number, logs in batches:
            ones = torch.ones(number)
            meters.update(StepOutput(torch.tensor(2.0), ones, ones, logs=logs), number)
        only_for_collectives = StepOutput(torch.tensor(5.0), torch.ones(3), torch.zeros(3))
        meters.update(only_for_collectives, 0)
        return meters.compute(ranks)

    first = [(2, {"pos": 1.0}), (2, {"neg": 100.0})]
    second = [(1, {"neg": 10.0}), (1, {"pos": 4.0}), (1, {"rare": 7.0})]
    expected = {"loss": 2.0, "f": 1.0, "a": 1.0, "pos": 2.0, "neg": 70.0, "rare": 7.0}
    assert on_ranks(compute, [first, second, []]) == [expected] * 3
    assert on_ranks(compute, [[], second[:1]]) == [{"loss": 2.0, "f": 1.0, "a": 1.0, "neg": 10}] * 2


@pytest.mark.parametrize(
    ("value", "received"),
    [
        (None, "a NoneType: reduce"),
        ("0.5", "a str: reduce"),
        ({"a": {"b": "c"}}, "a str as 'mine_a_b': reduce"),
        (torch.zeros(1001), "1001 numbers"),
        (torch.ones(1, dtype=torch.complex64), r"a tensor of shape \(1,\): reduce"),
        (torch.eye(3).to_sparse(), r"a tensor of shape \(3, 3\): reduce"),
        (np.array(["a"]), "a ndarray: reduce"),
    ],
)
def test_what_a_metric_function_must_return(value, received):
    meters = Meters({"mine": lambda outputs, targets: value}, CPU)
    with pytest.raises(DataError, match=f"metric 'mine' .*{received}"):
        meters.update(StepOutput(torch.tensor(0.0), torch.zeros(2)), 2)


def test_a_function_may_return_several_numbers():
    """Each is averaged by itself, also where a batch lacks one; saved in between."""

    def function(outputs, targets):
        values = {"low": outputs.min(), "each": outputs[:2], 3: 4}
        return values if len(outputs) == 2 else {**values, "rare": 7.0}

    plain, before, after = (Meters({"m": function}, CPU) for _ in range(3))
    outputs = [torch.tensor([1.0, 3.0]), torch.tensor([4.0, 0.0, 1.0, 1.0])]
    for batch in outputs:
        values = plain.update(StepOutput(torch.tensor(0.0), batch), len(batch))
    assert float(values["m_each_1"]) == 0.0
    before.update(StepOutput(torch.tensor(0.0), outputs[0]), 2)
    after.load_state_dict(before.state_dict())
    after.update(StepOutput(torch.tensor(0.0), outputs[1]), 4)
    expected = {"m_low": 2 / 6, "m_each_0": 3.0, "m_each_1": 1.0, "m_3": 4.0, "m_rare": 7.0}
    assert plain.compute() == after.compute() == {"loss": 0.0, **expected}


def test_numbers_of_a_function_have_names_of_their_own():
    metrics = {"m_a": Accuracy(), "m": lambda outputs, targets: {"a": 1.0}}
    with pytest.raises(ConfigurationError, match="metric 'm' computes 'm_a', which another") as why:
        feed(Meters(metrics, CPU), *scores([6], 2), [6])
    assert why.value.__notes__ == ["raised by metric 'm'"]
    meters = Meters({"m": lambda outputs, targets: {"a": 1.0}}, CPU)
    with pytest.raises(DataError, match="the training step logs 'm_a'"):
        meters.update(output(*scores([6], 2), logs={"m_a": 1.0}), 6)


def test_a_metric_may_compute_several_values():
    class PerClass(Metric):
        def update(self, outputs, targets):
            right = outputs.argmax(1) == targets
            return torch.cat([targets[right].bincount(minlength=4), targets.bincount(minlength=4)])

        def compute(self, sums):
            return sums[:4] / sums[4:]

    meters = Meters({"m": PerClass()}, CPU)
    targets = torch.tensor([0, 0, 1, 2, 3, 3, 3, 3])
    outputs = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 2, 3, 0, 0, 0]), 4).float()
    batch = meters.update(output(outputs[:5], targets[:5]), 5)
    assert set(batch) == {"loss"}  # how many values there are is known when they are computed
    meters.update(output(outputs[5:], targets[5:]), 3)
    expected = {"m_0": 0.5, "m_1": 1.0, "m_2": 1.0, "m_3": 0.25}
    values = meters.compute()
    assert {name: values[name] for name in expected} == expected


def test_a_metric_that_computes_no_numbers_is_refused_with_the_first_batch():
    class Text(Metric):
        def update(self, outputs, targets):
            return [1.0]

        def compute(self, sums):
            return "good"

    meters = Meters({"m": Text()}, CPU)
    with pytest.raises(DataError, match=r"metric .m. must return one number.*received a str"):
        meters.update(output(*scores([6], 2)), 6)


@pytest.mark.parametrize("value", [0.5, 1, torch.tensor([[0.5]]), torch.tensor(1), True])
def test_a_number_may_come_in_any_form(value):
    meters = Meters({"mine": lambda outputs, targets: value}, CPU)
    meters.update(StepOutput(torch.tensor(0.0), torch.zeros(2)), 2)
    assert meters.compute()["mine"] == float(value)


def test_numpy_numbers_may_come_too():
    import numpy as np

    meters = Meters({"mine": lambda outputs, targets: np.float64(0.5)}, CPU)
    meters.update(StepOutput(torch.tensor(0.0), torch.zeros(2)), 2)
    assert meters.compute()["mine"] == 0.5


@pytest.mark.parametrize(
    "statistics",
    [
        torch.tensor(1.0),
        torch.zeros(2, 2),
        torch.zeros(2, dtype=torch.complex64),
        1.0,
        None,
        (),
        (1.0, "2"),
        (1.0, np.ones(2)),
        [torch.ones(2), 1.0],
    ],
    ids=str,
)
def test_statistics_must_be_a_vector(statistics):
    class Bad(Metric):
        def update(self, outputs, targets):
            return statistics

        def compute(self, sums):
            return sums[0]

    meters = Meters({"bad": Bad()}, CPU)
    with pytest.raises(DataError, match=r"'bad' must return a tensor of shape \(statistics,\)"):
        meters.update(StepOutput(torch.tensor(0.0), torch.zeros(2)), 2)


def test_a_value_that_is_not_finite_is_shown_as_it_is():
    meters = Meters({}, CPU)
    meters.update(StepOutput(torch.tensor(1.0)), 2)
    meters.update(StepOutput(torch.tensor(math.nan)), 2)
    assert math.isnan(meters.compute()["loss"])


def test_state_of_other_metrics_is_refused():
    first = Meters({"mse": MeanSquaredError()}, CPU)
    with pytest.raises(CheckpointError, match="metrics 'mse', this run has 'r2'"):
        Meters({"r2": R2Score()}, CPU).load_state_dict(first.state_dict())


def test_torchmetrics_with_several_values():
    classification = torchmetrics.classification
    metrics = {
        "each": classification.MulticlassAccuracy(4, average=None),
        "matrix": classification.MulticlassConfusionMatrix(4),
    }
    meters = Meters(metrics, CPU)
    outputs, targets = scores([6, 3], 2)
    feed(meters, outputs, targets, [6, 3])
    values, found = meters.compute(), outputs.argmax(1)
    for row in range(4):
        is_row = targets == row
        mean = (found == row)[is_row].float().mean().item() if is_row.any() else 0.0
        assert values[f"each_{row}"] == pytest.approx(mean)
        for column in range(4):
            assert values[f"matrix_{row}_{column}"] == (is_row & (found == column)).sum()


def test_a_value_that_cannot_be_logged_does_not_end_the_epoch():
    class Text(Plain):
        def compute(self):
            return "good"

    metric = Text()
    metric.reset()
    meters = Meters({"m": metric}, CPU)
    feed(meters, *scores([6], 2), [6])
    with pytest.warns(UserWarning, match="metric 'm' must return .*received a str.* not logged"):
        assert set(meters.compute()) == {"loss"}


def test_values_of_a_collection_may_not_hide_another_metric():
    inner = torchmetrics.classification.MulticlassAccuracy(4)
    metrics = {"m_a": Accuracy(), "m": torchmetrics.MetricCollection({"a": inner})}
    meters, alone = Meters(metrics, CPU), Meters({"m_a": Accuracy()}, CPU)
    for one in (meters, alone):
        feed(one, *scores([6], 2), [6])
    with pytest.warns(UserWarning, match="metric 'm' computes 'm_a', which another.*not logged"):
        assert meters.compute() == alone.compute()


class Plain:
    """A metric in the torchmetrics way without its base class or a state."""

    def reset(self):
        self.seen = []

    def update(self, outputs, targets):
        self.seen.append(float(outputs.sum()))

    def compute(self):
        return sum(self.seen)


def test_any_object_that_accumulates_is_a_metric():
    metric = Plain()
    metric.reset()
    meters = Meters({"plain": metric}, CPU)
    meters.reset()
    meters.update(StepOutput(torch.tensor(0.0), torch.ones(2)), 2)
    meters.update(StepOutput(torch.tensor(0.0), torch.ones(3)), 3)
    other = Meters({"plain": metric}, CPU)
    other.load_state_dict(meters.state_dict())
    assert other.compute()["plain"] == 5.0
    assert meters.compute()["plain"] == 5.0
    assert "plain" not in meters.compute()  # an epoch that is over keeps no samples


def test_what_a_metric_keeps_does_not_keep_the_graph():
    class Keeps(Plain):
        def update(self, outputs, targets):
            self.seen.append((outputs["a"], outputs["b"][0]))

        def compute(self):
            return float(any(a.requires_grad or b.requires_grad for a, b in self.seen))

    weight = torch.ones(2, requires_grad=True)
    meters = Meters({"keeps": Keeps()}, CPU)
    meters.reset()
    meters.update(StepOutput(torch.tensor(0.0), {"a": 2 * weight, "b": [3 * weight]}), 2)
    assert meters.compute()["keeps"] == 0.0


class Sums(Metric):
    def __init__(self, number):
        self.number = number

    def update(self, outputs, targets):
        return [outputs.sum()] * self.number

    def compute(self, sums):
        return sums[0]


class AddedUp(Sums):
    def add_up(self, statistics):
        return statistics.sum(0)


@pytest.mark.parametrize("kind", [Sums, AddedUp])
@pytest.mark.parametrize(("before", "now"), [(1, 2), (3, 1), (1, 3)])
def test_a_metric_with_another_number_of_sums_is_refused_in_the_middle(kind, before, now):
    batch = StepOutput(torch.tensor(0.0), torch.ones(2))
    first, second, same = (Meters({"m": kind(n)}, CPU) for n in (before, now, before))
    first.update(batch, 2)
    for meters in (second, same):
        meters.load_state_dict(first.state_dict())
    same.update(batch, 2)
    assert same.compute()["m"] == 4.0
    with pytest.raises(
        CheckpointError, match=rf"metric 'm' had {before} sums .* has {now} now: go on with"
    ):
        second.update(batch, 2)


@pytest.mark.parametrize("before", [Accuracy(), Sums(3), Plain(), lambda outputs, targets: 1.0])
@pytest.mark.parametrize("now", [Accuracy(), Sums(3), Plain(), lambda outputs, targets: 1.0])
def test_a_metric_of_another_kind_is_refused_in_the_middle(before, now):
    first, second = Meters({"m": before}, CPU), Meters({"m": now}, CPU)
    first.reset()
    first.update(StepOutput(torch.tensor(0.0), torch.rand(2, 3), torch.tensor([0, 1])), 2)

    def go_on():
        second.load_state_dict(first.state_dict())
        second.update(StepOutput(torch.tensor(0.0), torch.rand(2, 3), torch.tensor([0, 1])), 2)

    if type(before) is type(now):
        go_on()
        return
    with pytest.raises(CheckpointError, match="go on with the same metric, or from the end"):
        go_on()


def test_the_error_about_other_metrics_speaks_of_no_checkpoint():
    first, second = Meters({"one": Accuracy()}, CPU), Meters({"two": Accuracy()}, CPU)
    with pytest.raises(CheckpointError, match="metrics 'one', this run has 'two'") as caught:
        second.load_state_dict(first.state_dict())
    assert "checkpoint" not in str(caught.value)


# ---- means: the short way gives the same bits as the long one


def mean_metrics():
    return {"accuracy": Accuracy(), "top2": TopKAccuracy(k=2), "mse": OneHotError()}


class OneHotError(MeanMetric):
    def values(self, outputs, targets):
        return (outputs - torch.nn.functional.one_hot(targets, outputs.shape[1])).square()


class Long(Metric):
    """A metric by what it says of itself, without anything known of its class."""

    def __init__(self, inner):
        self.update, self.compute = inner.update, inner.compute

    update = compute = None


Long.__abstractmethods__ = frozenset()


@settings(max_examples=12)
@given(sizes=SIZES, seed=st.integers(0, 1000), cut=st.integers(0, 12), many=st.booleans())
def test_means_are_bit_for_bit_those_of_their_statistics(sizes, seed, cut, many):
    sizes = sizes * 12 if many else sizes
    outputs, targets = scores(sizes, seed)
    short = Meters(mean_metrics(), CPU)
    long = Meters({name: Long(metric) for name, metric in mean_metrics().items()}, CPU)
    parts = list(zip(outputs.split(sizes), targets.split(sizes), strict=True))
    for number, (x, y) in enumerate(parts):
        if number == cut:
            saved = short.state_dict()
            assert_same(saved, long.state_dict())
            short = Meters(mean_metrics(), CPU)
            short.load_state_dict(saved)
        values = [meters.update(output(x, y), len(x)) for meters in (short, long)]
        for name in mean_metrics():
            assert float(values[0][name]()) == float(values[1][name]())
    assert short.running() == long.running()
    assert short.compute() == long.compute()


def assert_same(one, other):
    for name in mean_metrics():
        first, second = one["metrics"][name]["sums"], other["metrics"][name]["sums"]
        assert (first is None) is (second is None)
        assert first is None or (torch.equal(first, second) and first.dtype == second.dtype)


def test_a_metric_whose_values_change_their_kind_is_added_in_order():
    class Changing(MeanMetric):
        def values(self, outputs, targets):
            return outputs > 0 if len(outputs) == 2 else outputs

    batches = [torch.tensor([1.0, -1.0]), torch.tensor([0.1, 0.2, 0.3])] * 3
    short, long = Meters({"m": Changing()}, CPU), Meters({"m": Long(Changing())}, CPU)
    for batch in batches:
        for meters in (short, long):
            meters.update(StepOutput(torch.tensor(0.0), batch), len(batch))
    assert short.compute() == long.compute()


def test_a_mean_with_statistics_of_its_own_is_asked_for_them():
    class Weighted(Accuracy):
        def update(self, outputs, targets):
            return 3 * super().update(outputs, targets)

    patched = Accuracy()
    patched.update = lambda outputs, targets: torch.tensor([1.0, 4.0])
    meters = Meters({"weighted": Weighted(), "patched": patched}, CPU)
    meters.update(output(*scores([5], 0)), 5)
    saved = meters.state_dict()["metrics"]
    assert saved["weighted"]["sums"][1] == 15
    assert meters.compute()["patched"] == 0.25


def test_means_of_outputs_with_a_graph_carry_none():
    meters = Meters({"mse": OneHotError()}, CPU)
    outputs, targets = scores([3], 1)
    batch = meters.update(output(outputs.requires_grad_(), targets), 3)
    assert not batch["mse"]().requires_grad
    assert not meters.state_dict()["metrics"]["mse"]["sums"].requires_grad


@pytest.mark.parametrize(
    "statistics", [(3.0, 2), [torch.tensor(3.0), torch.tensor([2])], (np.float32(3.0), np.int64(2))]
)
def test_statistics_may_come_one_by_one(statistics):
    class OneByOne(Metric):
        def update(self, outputs, targets):
            return statistics

        def compute(self, sums):
            return sums[0] / sums[1]

    meters = Meters({"m": OneByOne()}, CPU)
    for _ in range(3):
        meters.update(StepOutput(torch.tensor(0.0), torch.zeros(2)), 2)
    assert meters.compute()["m"] == 1.5
    assert meters.state_dict()["metrics"]["m"]["sums"].tolist() == [9.0, 6.0]


def test_as_many_statistics_for_each_batch():
    class Changing(Metric):
        def update(self, outputs, targets):
            return [1.0] * len(outputs)

        def compute(self, sums):
            return sums[0]

    meters = Meters({"m": Changing()}, CPU)
    meters.update(StepOutput(torch.tensor(0.0), torch.zeros(2)), 2)
    with pytest.raises(DataError, match=r"'m' must return as many statistics .* 3 after 2"):
        meters.update(StepOutput(torch.tensor(0.0), torch.zeros(3)), 3)


class Samples(Plain):
    """Keeps all outputs, as for a function of scikit-learn."""

    def __init__(self):
        self.seen = []

    def update(self, outputs, targets):
        self.seen.append((outputs, targets))

    def compute(self):
        return float(torch.cat([outputs for outputs, _ in self.seen]).max())


class Looking(Callback):
    """What of the samples is in memory and in checkpoints, at some events."""

    def __init__(self):
        self.found = {}

    def look(self, event):
        held = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
        saved = iterate_tensors(self.handler.get_state_dict())
        self.found[event] = [
            sum(one.numel() for one in some if one.shape[1:] == (NUM_OUTPUTS,))
            for some in (held, saved)
        ]

    def on_train_batch_end(self, batch, logs):
        self.look(f"batch {batch}")

    def on_test_begin(self, logs):
        self.look("training is over")

    def on_epoch_end(self, epoch, logs):
        self.look("epoch is over")


NUM_OUTPUTS = 7


def test_an_epoch_that_is_over_keeps_no_samples():
    handler = NNHandler(torch.nn.Linear(2, NUM_OUTPUTS), device="cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.0)
    handler.set_loss_fn(torch.nn.CrossEntropyLoss())
    handler.add_metric("plain", Samples())
    handler.add_metric("whole", EpochMetric(lambda outputs, targets: outputs.max()))
    area = torchmetrics.classification.MulticlassAUROC(NUM_OUTPUTS)
    handler.add_metric("area", torchmetrics.MetricCollection([area]))
    data, looking = (torch.rand(60, 2), torch.arange(60) % NUM_OUTPUTS), Looking()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler.fit(
            data, batch_size=20, validation_data=data, progress_bar=False, callbacks=[looking]
        )
    per_batch = 20 * NUM_OUTPUTS * 3  # of each of the metrics
    held, saved = looking.found["batch 1"]
    assert held >= 2 * per_batch
    assert saved == 2 * per_batch  # for a resume
    for over in ("training is over", "epoch is over"):
        held, saved = looking.found[over]
        assert held < per_batch / 3
        assert saved == 0


def test_values_come_in_the_order_of_the_metrics():
    metrics = {
        "e": EpochMetric(lambda outputs, targets: {"b": 1, "a": 2}),
        "m_a": Accuracy(),
        "m": lambda outputs, targets: [1.0, 2.0],
        "z": Accuracy(),
    }
    meters = Meters(metrics, CPU)
    meters.update(output(*scores([6], 2), logs={"own": 1.0, "m_c": 2.0}), 6)
    expected = ["loss", "e_b", "e_a", "m_a", "m_0", "m_1", "m_c", "z", "own"]
    assert list(meters.compute()) == expected


@dataclass
class Result:
    scores: torch.Tensor


class KeepsInUpdate(Metric):
    def __init__(self, seen):
        self.seen = seen

    def update(self, outputs, targets):
        self.seen.append((outputs, targets))
        return [1.0]

    def compute(self, sums):
        return sums[0]


class KeepsAsObject:
    seen: ClassVar[list] = []  # of the class, as the object is copied

    def update(self, outputs, targets):
        self.seen.append((outputs, targets))

    def compute(self):
        return 1.0

    def reset(self):
        self.seen.clear()


def keep(seen):
    return lambda outputs, targets: seen.append((outputs, targets)) or 1.0


KEEPING = {
    "object": lambda seen: type("Own", (KeepsAsObject,), {"seen": seen})(),
    "function": keep,
    "Metric": KeepsInUpdate,
    "EpochMetric": lambda seen: EpochMetric(len, lambda o: seen.append([o]) or torch.ones(1)),
}
FORMS = {
    "tensor": (lambda one: one, lambda kept: kept),
    "nested": (lambda one: {"a": [1, (one,)]}, lambda kept: kept["a"][1][0]),
    "dataclass": (Result, lambda kept: kept.scores),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KEEPING)
def test_no_metric_gets_a_graph(kind, form):
    make, read = FORMS[form]
    seen = []
    meters = Meters({"m": KEEPING[kind](seen)}, CPU)
    one = torch.ones(3, requires_grad=True) * 2
    targets = None if kind == "EpochMetric" else make(one + 1)
    meters.update(StepOutput(one.sum(), make(one), targets), 3)
    assert len(seen) == 1
    for kept in seen[0]:
        assert not read(kept).requires_grad
