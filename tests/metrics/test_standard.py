"""The bundled metrics against torchmetrics, and their errors."""

from __future__ import annotations

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
    one_hot = torch.nn.functional.one_hot(targets, 5).float()
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
