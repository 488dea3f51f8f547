"""What the mean of a loss is over, so that batches, windows and epochs combine exactly."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
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
    "partial": (partial(functional.cross_entropy, ignore_index=2), {}, CLASSES),
    "partial with arguments": (
        partial(functional.cross_entropy, weight=CLASS_WEIGHTS),
        {"ignore_index": 0},
        CLASSES,
    ),
    "bytes": (nn.CrossEntropyLoss(CLASS_WEIGHTS), {}, CLASSES.byte()),
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
        (partial(functional.mse_loss, reduction="sum"), {}),
        (nn.MultiMarginLoss(reduction="sum"), {}),
        (functional.multi_margin_loss, {"reduction": "sum"}),
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
    assert as_weight(np.int64(3)) == 3
    assert as_weight(np.float32(0.5)) == 0.5
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


def per_element(outputs, targets):
    mask = targets != -100
    return ((outputs - targets).square() * mask).sum() / mask.sum()


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("way", ["function", "step"])
@pytest.mark.usefixtures("accelerator")
def test_a_batch_without_weight_changes_nothing_on_an_accelerator(way, window):
    """Its loss is 0 / 0, and so would be its gradients."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 3, generator=generator)
    y[4:8] = -100
    weights = []
    for device in ("sim:0", "cpu"):
        handler = NNHandler(nn.Linear, device, in_features=3, out_features=3, seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)

        def step(handler, batch):
            return StepOutput(
                per_element(handler.model(batch[0]), batch[1]), weight=own_weight(None, batch[1])
            )

        if way == "step":
            handler.set_train_step(step)
        else:
            handler.set_loss_fn(per_element, weight=own_weight)
        batches = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
        handler.fit(batches, epochs=2, gradient_accumulation_steps=window, progress_bar=False)
        assert handler.state.optimizer_steps == (4 if window == 1 else 2)
        weights.append(handler.module.weight.detach().cpu())
    assert weights[0].isfinite().all()
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("samples", [3, torch.tensor(3), torch.tensor([3]), np.int64(3)])
def test_the_samples_that_a_step_returns_are_a_plain_number(samples, tmp_path):
    handler = make_handler()
    handler.set_train_step(lambda h, b: StepOutput(h.model(b).mean(), num_samples=samples))
    handler.fit([X[:5]], progress_bar=False)
    assert handler.state.samples_seen == 3
    handler.save(tmp_path / "a.pth")
    assert NNHandler.load(tmp_path / "a.pth").state.samples_seen == 3


@pytest.mark.parametrize("samples", [2.5, -1, "3", torch.tensor(2.5), torch.ones(2)])
def test_samples_that_are_no_number_are_refused(samples):
    handler = make_handler()
    handler.set_train_step(lambda h, b: StepOutput(h.model(b).mean(), num_samples=samples))
    with pytest.raises(DataError, match="must be the number of samples in the batch"):
        handler.fit([X[:5]], progress_bar=False)


def test_no_samples_are_no_weight():
    handler = make_handler()
    handler.set_train_step(
        lambda h, b: StepOutput(h.model(b).mean() * math.nan, num_samples=torch.tensor(0))
    )
    handler.fit([X[:5]], progress_bar=False)
    assert handler.module.weight.isfinite().all()
    assert (handler.state.optimizer_steps, handler.state.samples_seen) == (0, 0)


def test_a_parameter_of_no_module_is_scaled_and_clipped_with_the_others():
    temperature = nn.Parameter(torch.ones((), dtype=torch.float64))

    def temperature_after(size, window):
        handler = make_handler()
        temperature.data.fill_(1.0)
        handler.set_optimizer(
            torch.optim.SGD, lr=0.1, params=lambda m: [*m.parameters(), temperature]
        )
        handler.set_loss_fn(lambda o, t: masked_mean(o * temperature, t), weight=own_weight)
        with pytest.warns(UserWarning, match="belong neither to the model nor to a loss module"):
            handler.fit(
                (X, PADDED),
                batch_size=size,
                shuffle=False,
                gradient_accumulation_steps=window,
                gradient_clipping_norm=0.01,
                progress_bar=False,
            )
        return temperature.item()

    expected = temperature_after(12, 1)
    assert expected != 1.0
    for size, window in ((2, 6), (5, 3)):
        assert temperature_after(size, window) == pytest.approx(expected, abs=1e-9)
