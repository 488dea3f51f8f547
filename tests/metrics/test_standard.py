"""The bundled metrics against torchmetrics, and their errors."""

from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch

from fitkit import (
    Accuracy,
    ConfigurationError,
    DataError,
    MeanAbsoluteError,
    MeanSquaredError,
    R2Score,
    TopKAccuracy,
)

functional = pytest.importorskip("torchmetrics.functional")


def value(metric, outputs, targets):
    return float(metric.compute(metric.update(outputs, targets)))


def test_accuracy_of_classes():
    outputs, targets = torch.randn(50, 5), torch.randint(5, (50,))
    expected = functional.accuracy(outputs, targets, "multiclass", num_classes=5)
    assert value(Accuracy(), outputs, targets) == pytest.approx(float(expected))
    for dtype in (torch.float32, torch.int64, torch.bool):
        one_hot = torch.nn.functional.one_hot(targets, 5).to(dtype)
        assert value(Accuracy(), outputs, one_hot) == pytest.approx(float(expected))


def test_accuracy_of_pixels():
    outputs, targets = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    expected = (outputs.argmax(1) == targets).float().mean()
    assert value(Accuracy(), outputs, targets) == pytest.approx(float(expected))


@pytest.mark.parametrize("shape", [(20,), (20, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_accuracy_of_a_binary_answer(shape, dtype):
    outputs, targets = torch.randn(shape), torch.randint(2, (20,)).to(dtype)
    expected = ((outputs.flatten() > 0) == targets.bool()).float().mean()
    assert value(Accuracy(), outputs, targets) == pytest.approx(float(expected))
    assert value(Accuracy(0.5), outputs.sigmoid(), targets) == pytest.approx(float(expected))


def test_accuracy_of_one_sample():
    assert value(Accuracy(), torch.tensor([[0.0, 1.0]]), torch.tensor([1])) == 1.0
    assert value(Accuracy(), torch.tensor([[0.0, 1.0]]), torch.tensor([0])) == 0.0


@pytest.mark.parametrize(
    ("outputs", "targets"), [((4, 3), (5,)), ((4, 3), (4, 2)), ((4,), (5,)), ((4, 3, 2), (4,))]
)
def test_accuracy_names_shapes_that_do_not_fit(outputs, targets):
    with pytest.raises(DataError) as caught:
        Accuracy().update(torch.zeros(outputs), torch.zeros(targets))
    assert str(outputs) in str(caught.value)
    assert str(targets) in str(caught.value)


def test_classes_in_the_last_dimension_are_named():
    with pytest.raises(DataError, match="move the classes to the second dimension"):
        Accuracy().update(torch.zeros(2, 5, 3), torch.zeros(2, 5).long())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k(k):
    outputs, targets = torch.randn(60, 5), torch.randint(5, (60,))
    expected = functional.accuracy(
        outputs, targets, "multiclass", num_classes=5, top_k=k, average="micro"
    )
    assert value(TopKAccuracy(k), outputs, targets) == pytest.approx(float(expected))


def test_top_k_needs_so_many_classes():
    with pytest.raises(DataError, match="at least 5 classes"):
        TopKAccuracy(5).update(torch.zeros(2, 3), torch.zeros(2))
    for k in (0, -1, 1.5, True):
        with pytest.raises(ConfigurationError, match="k must be a whole number"):
            TopKAccuracy(k)


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (MeanSquaredError(), functional.mean_squared_error),
        (MeanAbsoluteError(), functional.mean_absolute_error),
        (R2Score(), functional.r2_score),
    ],
)
def test_regression_against_torchmetrics(metric, reference):
    outputs, targets = torch.randn(40), torch.randn(40)
    expected = float(reference(outputs, targets))
    assert value(metric, outputs, targets) == pytest.approx(expected, rel=1e-5)
    # (batch, 1) against (batch,) must not be broadcast to (batch, batch)
    assert value(metric, outputs.unsqueeze(1), targets) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(DataError, match=r"\(40,\) and \(39,\)"):
        metric.update(outputs, targets[:39])


@pytest.mark.parametrize("threshold", [float("nan"), "0", None, True])
def test_a_threshold_is_a_number(threshold):
    with pytest.raises(ConfigurationError, match="threshold must be a finite number"):
        Accuracy(threshold)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_measured_in_double(dtype):
    outputs = torch.full((4096,), 0.1, dtype=dtype)
    expected = float(outputs[0].double().square())
    assert value(MeanSquaredError(), outputs, torch.zeros(4096)) == pytest.approx(
        expected, rel=1e-9
    )


TARGETS = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 0]])
OUTPUTS = torch.tensor([[-3.0, 1, 2], [-3.0, -2, -1], [-1.0, -2, -3]])  # 8 of 9 are right


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.bfloat16])
def test_accuracy_of_several_labels(dtype):
    assert value(Accuracy(multilabel=True), OUTPUTS, TARGETS.to(dtype)) == pytest.approx(8 / 9)
    scores = OUTPUTS.sigmoid()
    assert value(Accuracy(0.5, multilabel=True), scores, TARGETS) == pytest.approx(8 / 9)
    metric = Accuracy(multilabel=True)  # a batch of one-hot rows is no other case
    assert value(metric, OUTPUTS[2:], TARGETS[2:].to(dtype)) == pytest.approx(2 / 3)


def test_labels_are_not_taken_for_classes(accelerator):
    message = r"shape \(3, 3\) that are not one-hot: pass multilabel=True"
    for targets in (TARGETS, TARGETS.long(), TARGETS.bool()):
        with pytest.raises(DataError, match=message):
            Accuracy().update(OUTPUTS, targets)
    outputs, targets = OUTPUTS.to("sim"), TARGETS.to("sim")
    accelerator.waits.clear()
    sums = Accuracy().update(outputs, targets)
    assert Accuracy().compute(sums).device.type == "sim"
    assert accelerator.waits == []
    with pytest.warns(UserWarning, match="that are not one-hot: pass multilabel=True"):
        assert Accuracy().compute(sums.cpu()).isnan()


def test_probabilities_are_classes():
    """Mixed or smoothed targets: the highest is the class, also in short floats."""
    outputs, targets = torch.randn(40, 5), torch.rand(40, 5).softmax(1)
    expected = (outputs.argmax(1) == targets.argmax(1)).float().mean().item()
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert value(Accuracy(), outputs, targets.to(dtype)) == pytest.approx(expected, abs=0.03)
    assert value(Accuracy(multilabel=False), outputs, 3 * targets) == pytest.approx(expected)


def test_padding_is_left_out():
    outputs, targets = torch.randn(4, 3, 5), torch.randint(3, (4, 5))
    targets[:, 3:] = -100
    is_right = outputs.argmax(1) == targets
    expected = is_right[:, :3].float().mean().item()
    assert value(Accuracy(), outputs, targets) == pytest.approx(expected)
    assert value(Accuracy(ignore_index=None), outputs, targets) == pytest.approx(expected * 3 / 5)
    expected = is_right[targets >= 1].float().mean().item()
    targets[targets == -100] = 0
    assert value(Accuracy(ignore_index=0), outputs, targets) == pytest.approx(expected)
    labels = torch.tensor([1.0, 0.0, -1.0, -1.0])
    right = torch.tensor([0.3, 0.4, 0.0, 9.0])
    assert value(Accuracy(ignore_index=-1), right, labels) == 0.5
    assert math.isnan(value(Accuracy(), outputs, torch.full((4, 5), -100)))


def test_padding_is_left_out_of_the_best_classes():
    outputs, targets = torch.randn(30, 5), torch.randint(5, (30,))
    targets[::3] = -100
    counts = targets >= 0
    expected = value(TopKAccuracy(2), outputs[counts], targets[counts])
    assert value(TopKAccuracy(2), outputs, targets) == pytest.approx(expected)
    assert value(TopKAccuracy(2, ignore_index=None), outputs, targets) < expected


@pytest.mark.parametrize("ignore_index", [1.5, "0", True])
@pytest.mark.parametrize("kind", [Accuracy, TopKAccuracy])
def test_an_index_to_ignore_is_a_whole_number(kind, ignore_index):
    with pytest.raises(ConfigurationError, match="ignore_index must be a whole number or None"):
        kind(ignore_index=ignore_index)
    with pytest.raises(ConfigurationError, match="multilabel must be True, False or None"):
        Accuracy(multilabel="yes")


METRICS = [Accuracy(), TopKAccuracy(1), MeanSquaredError(), MeanAbsoluteError(), R2Score()]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
@pytest.mark.parametrize("parts", [lambda t: (t, t), lambda t: {"a": t}, lambda t: [t]])
def test_outputs_of_several_parts_say_what_to_do(metric, parts):
    name, one = type(metric).__name__, torch.ones(3)
    with pytest.raises(DataError, match=rf"^{name} needs outputs that are one tensor, .* subclass"):
        metric.update(parts(one), one)
    with pytest.raises(DataError, match=rf"^{name} needs targets that are one tensor, .* subclass"):
        metric.update(one, parts(one))


class ModelOutput(OrderedDict):
    """As that of transformers."""

    @property
    def logits(self):
        return self["logits"]


def test_a_model_output_stands_for_its_logits():
    outputs, targets = torch.randn(9, 4), torch.randint(4, (9,))
    named = ModelOutput(loss=torch.ones(()), logits=outputs, cache=None)
    for metric in (Accuracy(), TopKAccuracy(2)):
        assert value(metric, named, targets) == value(metric, outputs, targets)
    values = torch.randn(9, 4)
    named = ModelOutput(logits=outputs)
    for metric in (MeanSquaredError(), MeanAbsoluteError(), R2Score()):
        assert value(metric, named, values) == value(metric, outputs, values)


@pytest.mark.parametrize("metric", METRICS[:1] + METRICS[2:])
def test_as_many_elements_in_another_order_are_refused(metric):
    with pytest.raises(DataError, match=r"received \(2, 1, 3\) and \(3, 2\)"):
        metric.update(torch.ones(2, 1, 3), torch.ones(3, 2))
