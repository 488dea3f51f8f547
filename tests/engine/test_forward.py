"""The loss of one batch: what a step may return, and how samples are counted."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import ConfigurationError, DataError, StepOutput
from fitkit.engine.forward import Forward, as_step_output
from fitkit.runtime.precision import Precision

X, Y = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2)
Pair = namedtuple("Pair", "x y")


def forward(**options):
    defaults = {
        "model": nn.Identity(),
        "to_device": lambda batch: batch,
        "split": lambda batch: batch,
        "call": lambda model, inputs: model(inputs),
        "loss": nn.MSELoss(),
        "precision": Precision(torch.device("cpu")),
    }
    return Forward(**{**defaults, **options})


def test_the_loss_is_computed_from_outputs_and_targets_on_the_device():
    output, num_samples = forward(to_device=lambda batch: (batch[0] + 1, batch[1]))((X, Y))
    assert output.loss == nn.functional.mse_loss(X + 1, Y)
    assert torch.equal(output.outputs, X + 1)
    assert output.targets is Y
    assert num_samples == 3


def test_without_targets_the_loss_gets_the_model_and_the_inputs():
    received = []

    def loss(*args):
        received.append(args)
        return X.mean()

    model = nn.Identity()
    for inputs in (X, (X, Y), [X, Y]):
        output, _ = forward(model=model, loss=loss, split=lambda batch: (batch, None))(inputs)
        assert output.outputs is None
    assert received == [(model, X), (model, X, Y), (model, X, Y)]


def test_a_compiled_loss_is_copied():
    buffer = torch.tensor(2.0)
    output, _ = forward(compiled=lambda x, y: (buffer, x))((X, Y))
    buffer.fill_(7.0)  # as CUDA graphs do with the next batch
    assert output.loss == 2.0
    assert output.outputs is X


@pytest.mark.parametrize(
    "batch", [(X, Y), [X, Y], {"x": X}, Pair(X, Y), {"lr": torch.ones(()), "x": X}]
)
def test_samples_are_the_first_dimension_of_the_first_tensor(batch):
    assert forward(custom=lambda batch: X.mean())(batch)[1] == 3


@pytest.mark.parametrize("batch", [torch.ones(()), "text", (), None])
def test_a_batch_of_unknown_size_counts_as_one_sample(batch):
    assert forward(custom=lambda batch: X.mean())(batch)[1] == 1


@given(size=st.integers(1, 5), given_size=st.none() | st.integers(1, 100))
def test_the_number_that_a_step_returns_wins(size, given_size):
    step = forward(custom=lambda batch: {"loss": batch.mean(), "num_samples": given_size})
    assert step(torch.ones(size, 2))[1] == (size if given_size is None else given_size)


@pytest.mark.parametrize("batch", [torch.ones(0, 2), (torch.ones(0), torch.ones(0))])
def test_an_empty_batch_is_an_error(batch):
    with pytest.raises(DataError, match=r"holds no sample \(float32 \(0.*leave empty batches out"):
        forward(custom=lambda batch: torch.tensor(0.0))(batch)


@pytest.mark.parametrize(
    ("loss", "received"),
    [
        (torch.ones(1), r"a tensor of shape \(1,\)"),
        (torch.ones(2, 3), r"a tensor of shape \(2, 3\)"),
        (1.5, "a float"),
    ],
)
def test_a_loss_that_is_no_scalar_tensor_is_an_error(loss, received):
    with pytest.raises(DataError, match=f"must be a scalar tensor, received {received}"):
        forward(loss=lambda outputs, targets: loss)((X, Y))


def test_without_a_loss():
    with pytest.raises(
        ConfigurationError, match=r"no loss function is set: call handler.set_loss_fn"
    ):
        forward(loss=None)((X, Y))


def test_a_note_on_an_error_has_the_shapes_of_the_batch():
    def fail(batch):
        raise KeyError("label")

    with pytest.raises(KeyError) as caught:
        forward(custom=fail)({"x": X, "y": (Y.long(),)})
    note = "raised by the step on a batch of float32 (3, 2), int64 (3, 2)"
    assert caught.value.__notes__ == [note]


def test_results_of_a_step():
    loss, full = torch.tensor(1.0), StepOutput(torch.tensor(2.0), backward=False)
    assert as_step_output(full) is full
    assert as_step_output(loss) == StepOutput(loss)
    mapping = OrderedDict(loss=loss, logs={"a": 1}, backward=False)
    assert as_step_output(mapping) == StepOutput(loss, logs={"a": 1}, backward=False)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({}, "needs 'loss' and may have .*'outputs'.*received none"),
        ({"outputs": X}, "needs 'loss'.*received 'outputs'"),
        ({"loss": X.mean(), "accuracy": 1}, "received 'accuracy', 'loss'. Put .* under 'logs'"),
        (None, "must return the loss .* received NoneType"),
        ((X.mean(), X), "received tuple"),
        (1.0, "received float"),
    ],
)
def test_a_result_that_is_no_step_output(result, sentence):
    with pytest.raises(DataError, match=sentence):
        as_step_output(result)
