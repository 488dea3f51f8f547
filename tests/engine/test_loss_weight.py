"""What the mean of a loss is over, so that batches, windows and epochs combine exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fitkit import ConfigurationError, DataError, NNHandler, StepOutput
from fitkit.core.component_spec import LossSpec
from fitkit.engine.loss_weight import as_weight, loss_weight

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(12, 4, generator=GENERATOR, dtype=torch.float64)
CLASSES = torch.arange(12) % 3
PADDED = CLASSES.masked_fill(torch.arange(12) % 4 < 2, -100)
PADDED[:3] = -100  # the first batch has padding only
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
PROBABILITIES = torch.softmax(torch.randn(12, 3, generator=GENERATOR, dtype=torch.float64), 1)
VALUES = torch.rand(12, 3, generator=GENERATOR, dtype=torch.float64)


def masked_mean(outputs, targets):
    mask = targets != -100
    return (outputs.logsumexp(1) * mask).sum() / mask.sum().clamp(min=1)


def own_weight(outputs, targets):
    return (targets != -100).sum()


# loss, arguments of set_loss_fn, targets
LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), {}, CLASSES),
    "padding": (nn.CrossEntropyLoss(), {}, PADDED),
    "padding of one's own": (nn.CrossEntropyLoss(ignore_index=1), {}, CLASSES),
    "class weights": (nn.CrossEntropyLoss(CLASS_WEIGHTS), {}, CLASSES),
    "class weights and padding": (nn.CrossEntropyLoss(CLASS_WEIGHTS), {}, PADDED),
    "ignored class outside": (nn.CrossEntropyLoss(CLASS_WEIGHTS, ignore_index=255), {}, CLASSES),
    "smoothed": (nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.1), {}, PADDED),
    "probabilities": (nn.CrossEntropyLoss(CLASS_WEIGHTS), {}, PROBABILITIES),
    "class to build": (nn.CrossEntropyLoss, {"weight": CLASS_WEIGHTS}, PADDED),
    "function": (functional.cross_entropy, {}, PADDED),
    "function with weights": (functional.cross_entropy, {"weight": CLASS_WEIGHTS}, PADDED),
    "nll": (nn.NLLLoss(CLASS_WEIGHTS), {}, PADDED),
    "nll function": (functional.nll_loss, {"ignore_index": 2}, CLASSES),
    "mse": (nn.MSELoss(), {}, VALUES),
    "bce with logits": (nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS), {}, VALUES),
    "kl": (nn.KLDivLoss(reduction="batchmean"), {}, PROBABILITIES),
    "user's": (masked_mean, {"weight": own_weight}, PADDED),
}


def whole(loss, options, targets):
    """Loss, and weights after one step on all of it, by torch alone."""
    options = {name: value for name, value in options.items() if value is not own_weight}
    if isinstance(loss, type):
        loss, options = loss(**options), {}
    model = make_handler().module
    value = loss(model(X), targets, **options)
    value.backward()
    return value.item(), model.weight.detach() - 0.1 * model.weight.grad


def make_handler():
    handler = NNHandler(
        nn.Linear, "cpu", in_features=4, out_features=3, seed=0, dtype=torch.float64
    )
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    return handler


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("size", "window"), [(12, 1), (3, 4), (5, 3), (1, 12), (4, 3)])
def test_batches_and_windows_make_the_mean_of_one_batch(name, size, window):
    loss, options, targets = LOSSES[name]
    expected, weight = whole(loss, options, targets)
    handler = make_handler()
    handler.set_loss_fn(loss, **options)
    assert abs(handler.evaluate((X, targets), batch_size=size)["loss"] - expected) < 1e-9
    history = handler.fit(
        (X, targets),
        batch_size=size,
        shuffle=False,
        gradient_accumulation_steps=window,
        progress_bar=False,
    ).history
    # batches that all have weight are in one window; padding at its begin is not a batch of it
    assert torch.allclose(handler.module.weight, weight, rtol=0, atol=1e-9)
    assert abs(history["loss"][0] - expected) < 1e-9


@given(cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 99))
def test_sequences_of_any_length_and_padding(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    edges = [0, *sorted(cuts), 12]
    lengths = torch.randint(1, 6, (12,), generator=generator)
    batches = []
    for begin, end in itertools.pairwise(edges):
        longest = int(lengths[begin:end].max())
        x = torch.randn(end - begin, longest, 4, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (end - begin, longest), generator=generator)
        y[torch.arange(longest) >= lengths[begin:end, None]] = -100
        batches.append((x, y))
    handler = make_handler()
    handler.set_loss_fn(lambda o, t: functional.cross_entropy(o.mT, t), weight=own_weight)
    outputs = torch.cat([handler.module(x).reshape(-1, 3) for x, _ in batches])
    expected = functional.cross_entropy(outputs, torch.cat([y.reshape(-1) for _, y in batches]))
    assert abs(handler.evaluate(batches)["loss"] - expected.item()) < 1e-9
    handler.set_loss_fn(nn.MSELoss())
    values = [(x, torch.zeros(*x.shape[:2], 3, dtype=torch.float64)) for x, _ in batches]
    assert abs(handler.evaluate(values)["loss"] - outputs.square().mean().item()) < 1e-9


def test_a_batch_of_padding_changes_nothing(recorder):
    padding = torch.full((3,), -100)
    batches = [(X[:3], CLASSES[:3]), (X[3:6], padding), (X[6:9], CLASSES[6:9])]
    results = []
    for data in (batches, [batches[0], batches[2]]):
        handler = make_handler()
        handler.set_loss_fn(nn.CrossEntropyLoss())
        handler.fit(data, validation_data=data, epochs=2, progress_bar=False)
        results.append(
            (handler.history.history, handler.state.optimizer_steps, handler.module.weight)
        )
    assert results[0][:2] == results[1][:2]
    assert torch.equal(results[0][2], results[1][2])
    assert results[0][1] == 4


def test_an_epoch_of_padding_has_no_mean():
    handler = make_handler()
    handler.set_loss_fn(nn.CrossEntropyLoss())
    before = handler.module.weight.clone()
    history = handler.fit([(X[:3], torch.full((3,), -100))], progress_bar=False).history
    assert str(history["loss"][0]) == "nan"
    assert torch.equal(handler.module.weight, before)


def test_class_weights_that_are_changed_count_at_once():
    weights = CLASS_WEIGHTS.clone()
    weight = loss_weight(LossSpec(nn.CrossEntropyLoss(weights))).function
    assert weight(None, CLASSES) == 4 * 26.0
    weights.mul_(2)
    assert weight(None, CLASSES) == 8 * 26.0


class Own(nn.CrossEntropyLoss):
    def forward(self, outputs, targets):
        return super().forward(outputs, targets) * 2


class Renamed(nn.CrossEntropyLoss):
    pass


def test_which_losses_are_understood():
    assert loss_weight(LossSpec(Own())) is None
    assert loss_weight(LossSpec(lambda outputs, targets: 0)) is None
    assert loss_weight(LossSpec(nn.CTCLoss())) is None
    assert loss_weight(LossSpec(Renamed())).function(None, PADDED) == (PADDED != -100).sum()
    assert loss_weight(LossSpec(nn.MSELoss())).function(None, {"a": X}) is None


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (nn.MSELoss(reduction="sum"), {}),
        (nn.CrossEntropyLoss, {"reduction": "sum"}),
        (functional.cross_entropy, {"reduction": "sum"}),
        (nn.BCELoss(reduction="sum"), {"weight": lambda outputs, targets: 1}),
    ],
)
def test_a_sum_is_refused_and_the_loss_that_was_set_stays(loss, options):
    handler = make_handler()
    handler.set_loss_fn(nn.L1Loss())
    before = handler.parts.loss
    with pytest.raises(ConfigurationError, match=r"must be a mean, .* has reduction='sum'"):
        handler.set_loss_fn(loss, **options)
    assert handler.parts.loss is before


@pytest.mark.parametrize("weight", [lambda targets: 1, lambda: 1])
def test_a_weight_that_cannot_be_called_with_outputs_and_targets(weight):
    with pytest.raises(ConfigurationError, match=r"weight must be a function \(outputs, targets\)"):
        make_handler().set_loss_fn(nn.MSELoss(), weight=weight)


def test_a_weight_that_is_no_function_is_an_argument_of_the_loss():
    handler = make_handler()
    handler.set_loss_fn(lambda outputs, targets, weight: outputs.sum() * 0 + weight, weight=3)
    assert handler.evaluate((X, CLASSES))["loss"] == 3.0


def test_values_of_weights():
    assert as_weight(3) == 3
    assert as_weight(torch.tensor([2.5])) == 2.5
    assert as_weight(torch.tensor(True)) == 1
    with pytest.raises(DataError, match=r"at least 0, received a tensor of shape \(2,\)"):
        as_weight(torch.ones(2))
    with pytest.raises(DataError, match="at least 0, received -1"):
        as_weight(torch.tensor(-1))


def test_a_weight_of_the_user_must_be_set_again_after_loading(tmp_path):
    handler = make_handler()
    handler.set_loss_fn(nn.CrossEntropyLoss(), weight=own_weight)
    handler.save(tmp_path / "a.pth")
    assert NNHandler.load(tmp_path / "a.pth").parts.loss is None


def test_a_step_gives_the_weight_of_its_loss():
    handler = make_handler()

    def step(handler, batch):
        inputs, tokens = batch
        loss = inputs.mean() + 0 * handler.module.weight.sum()
        return StepOutput(loss, weight=tokens.sum(), logs={"tokens": tokens.double().mean()})

    handler.set_train_step(step)
    batches = [
        (torch.full((4, 1), 1.0), torch.full((4,), 5)),
        (torch.full((2, 1), 3.0), torch.full((2,), 30)),
    ]
    history = handler.fit(batches, progress_bar=False).history
    assert history["loss"] == [(1 * 20 + 3 * 60) / 80]
    assert history["tokens"] == [(4 * 5 + 2 * 30) / 6], "logs are means over samples"
    assert handler.state.samples_seen == 6
