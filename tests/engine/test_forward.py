"""The loss of one batch: what a step may return, its samples and its weight."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fitkit import ConfigurationError, DataError, StepOutput
from fitkit.core.types import Share
from fitkit.engine.forward import Forward, as_step_output
from fitkit.engine.loss_weight import LossWeight
from fitkit.runtime.precision import Precision

X, Y = torch.arange(6.0).reshape(3, 2), torch.ones(3, 2)


def counted(size):
    return lambda batch, given: Share(size if given is None else given, None)


def three(batch, given):
    return counted(3)(batch, given)


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
    output, _ = forward(to_device=lambda batch: (batch[0] + 1, batch[1]))((X, Y), three)
    assert output.loss == nn.functional.mse_loss(X + 1, Y)
    assert torch.equal(output.outputs, X + 1)
    assert output.targets is Y
    assert output.num_samples == output.weight == 3


def test_the_loss_of_a_score_based_model_gets_the_model_and_the_inputs():
    received = []

    def loss(*args):
        received.append(args)
        return X.mean()

    model = nn.Identity()
    packed = pack_sequence([X])
    for inputs in (X, (X, Y), [X, Y], packed):
        step = forward(
            model=model, loss=loss, split=lambda batch: (batch, None), loss_calls_model=True
        )
        output, _ = step(inputs, three)
        assert output.outputs is None
    assert received == [(model, X), (model, X, Y), (model, X, Y), (model, packed)]


def test_a_batch_without_targets_gives_the_loss_none():
    received = []
    step = forward(loss=lambda *args: received.append(args) or X.mean())
    output, _ = step((X, None), three)
    ((outputs, targets),) = received
    assert outputs is X
    assert targets is None
    assert output.targets is None
    assert output.outputs is X


def test_a_normalization_of_one_sample_says_what_to_do():
    norm = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        forward(model=norm)((X[:1], Y[:1]), three)
    assert "drop_last=True, or choose another batch_size" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="on purpose") as caught:
        forward(loss=lambda *args: int("on purpose"))((X, Y), three)
    assert not any("drop_last" in note for note in caught.value.__notes__)


def test_a_compiled_loss_is_copied():
    buffer = torch.tensor(2.0)
    output, _ = forward(compiled=lambda x, y: (buffer, x))((X, Y), three)
    buffer.fill_(7.0)  # as CUDA graphs do with the next batch
    assert output.loss == 2.0
    assert output.outputs is X


@pytest.mark.parametrize(
    ("given", "samples", "weight"),
    [
        ({}, 3, 3),
        ({"num_samples": 7}, 7, 7),
        ({"weight": 2.5}, 3, 2.5),
        ({"weight": torch.tensor(4)}, 3, 4),
        ({"weight": 0}, 3, 0),
        ({"num_samples": 7, "weight": 1}, 7, 1),
    ],
)
def test_what_a_step_says_of_samples_and_weight_wins(given, samples, weight):
    output, _ = forward(custom=lambda batch: {"loss": batch.mean(), **given})(X, three)
    assert (output.num_samples, output.weight) == (samples, weight)


def test_a_batch_that_another_rank_counts_has_no_weight():
    output, _ = forward(custom=lambda batch: StepOutput(batch.mean(), weight=9))(
        X, lambda batch, given: Share(0, None)
    )
    assert (output.num_samples, output.weight) == (0, 0)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "3", torch.ones(2), 1j])
def test_a_weight_that_is_none_is_an_error(weight):
    with pytest.raises(DataError, match="one number of at least 0, received"):
        forward(custom=lambda batch: StepOutput(batch.mean(), weight=weight))(X, three)


def test_the_same_object_may_be_returned_for_each_batch():
    result = StepOutput(torch.tensor(1.0))
    step = forward(custom=lambda batch: result)
    assert [step(X, counted(n))[0].weight for n in (3, 5)] == [3, 5]


def test_a_weight_that_needs_no_outputs_is_computed_before_the_batch_is_moved():
    devices = []
    weight = LossWeight(lambda outputs, targets: devices.append((outputs, targets)) or 11)
    step = forward(
        to_device=lambda batch: (batch[0], "moved"), weight=weight, loss=lambda o, t: o.sum()
    )
    output, _ = step((X, Y), three)
    assert devices == [(None, Y)]
    assert (output.targets, output.weight, output.num_samples) == ("moved", 11, 3)


def test_a_weight_of_outputs_and_targets():
    weight = LossWeight(lambda outputs, targets: (outputs.sum(), targets.sum())[1], True)
    assert forward(weight=weight)((X, Y), three)[0].weight == 6


def test_an_evaluation_step_needs_no_loss():
    output, _ = forward(custom=lambda batch: StepOutput(None, batch), needs_loss=False)(X, three)
    assert (output.loss, output.num_samples) == (None, 3)
    with pytest.raises(DataError, match="must be a scalar tensor, received a NoneType"):
        forward(custom=lambda batch: StepOutput(None, batch))(X, three)


def test_a_step_of_a_sharded_model_may_not_skip():
    with pytest.raises(DataError, match=r"return StepOutput\(loss, weight=0\) instead"):
        forward(custom=lambda batch: None, may_skip=False)(X, three)


def test_a_skipped_batch_has_no_output():
    assert forward(custom=lambda batch: None)(X, three) == (None, Share(0, None))


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
        forward(loss=lambda outputs, targets: loss)((X, Y), three)


def test_without_a_loss():
    with pytest.raises(
        ConfigurationError, match=r"no loss function is set: call handler.set_loss_fn"
    ):
        forward(loss=None)((X, Y), three)


def test_a_note_on_an_error_has_the_shapes_of_the_batch():
    def fail(batch):
        raise KeyError("label")

    with pytest.raises(KeyError) as caught:
        forward(custom=fail)({"x": X, "y": (Y.long(),)}, three)
    note = "raised by the step on a batch of float32 (3, 2), int64 (3, 2)"
    assert caught.value.__notes__ == [note]


def test_results_of_a_step():
    loss, full = torch.tensor(1.0), StepOutput(torch.tensor(2.0), backward=False)
    assert as_step_output(full) == full
    assert as_step_output(None) is None
    assert as_step_output(loss) == StepOutput(loss)
    mapping = OrderedDict(loss=loss, logs={"a": 1}, backward=False)
    assert as_step_output(mapping) == StepOutput(loss, logs={"a": 1}, backward=False)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ({}, "needs 'loss' and may have .*'outputs'.*received none"),
        ({"outputs": X}, "needs 'loss'.*received 'outputs'"),
        ({"loss": X.mean(), "accuracy": 1}, "received 'accuracy', 'loss'. Put .* under 'logs'"),
        ((X.mean(), X), "received tuple"),
        (1.0, "received float"),
    ],
)
def test_a_result_that_is_no_step_output(result, sentence):
    with pytest.raises(DataError, match=sentence):
        as_step_output(result)
