"""Targets that an elementwise loss would broadcast are refused; others are not touched."""

from __future__ import annotations

import time
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from fitkit import DataError, NNHandler
from fitkit.engine.loss_shapes import ShapeCheck

COLUMN, FLAT = torch.rand(4, 1), torch.rand(4)


def through_functional(outputs, targets):
    return functional.mse_loss(outputs, targets)


class Own(nn.MSELoss):
    """Inherits its forward."""


LOSSES = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    nn.HuberLoss(),
    nn.BCELoss(),
    nn.BCEWithLogitsLoss(),
    nn.KLDivLoss(reduction="batchmean"),
    nn.MultiLabelSoftMarginLoss(),
    nn.PoissonNLLLoss(),
    nn.SoftMarginLoss(),
    nn.HingeEmbeddingLoss(),
    Own(),
    functional.mse_loss,
    functional.soft_margin_loss,
    partial(functional.poisson_nll_loss, log_input=False),
    through_functional,
    lambda outputs, targets: functional.huber_loss(outputs, targets) + 1,
]


def compute(loss, outputs, targets):
    check = ShapeCheck(loss)
    if check.is_due(outputs, targets):
        return check.call(loss, outputs, targets)
    return loss(outputs, targets)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("outputs", "targets", "advice"),
    [
        (COLUMN, FLAT, r"pass targets\[:, None\] for targets"),
        (FLAT, COLUMN, r"pass targets\[:, 0\] for targets"),
        (torch.rand(4, 3), torch.rand(4, 1), "give both the same shape"),
        (torch.rand(4, 1), torch.rand(1, 4), "give both the same shape"),
        (torch.rand(4, 3), torch.rand(()), "give both the same shape"),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused(loss, outputs, targets, advice):
    sizes = f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} would be broad"
    with pytest.raises(DataError, match=advice) as caught:
        compute(loss, outputs, targets)
    assert sizes in str(caught.value)


def test_losses_that_compare_otherwise_are_not_touched():
    logits, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert compute(nn.CrossEntropyLoss(), logits, classes) == nn.CrossEntropyLoss()(logits, classes)
    own = compute(lambda o, t: (o - t).square().mean(), COLUMN, FLAT)
    assert own == (COLUMN - FLAT).square().mean()  # (4, 4): what the user wrote
    assert compute(lambda o, t: functional.mse_loss(o[:, 0], t), COLUMN, FLAT) == nn.MSELoss()(
        COLUMN[:, 0], FLAT
    )


def test_a_loss_that_broadcasts_other_tensors_warns_as_in_torch():
    with pytest.warns(UserWarning, match="Using a target size"):
        compute(lambda o, t: functional.mse_loss(o, t.mean()[None]), COLUMN, FLAT)


def test_shapes_that_do_not_fit_are_left_to_torch():
    with pytest.raises(ValueError, match="Using a target size"):
        compute(nn.BCELoss(), torch.rand(4, 3), torch.rand(4, 2))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_one_sample_is_compared_with_itself_however_it_is_shaped():
    assert compute(nn.MSELoss(), torch.ones(1, 1), torch.zeros(1)) == 1.0
    check = ShapeCheck(nn.MSELoss())
    check.call(nn.MSELoss(), torch.ones(1, 1), torch.zeros(1))
    assert check.is_due(COLUMN, FLAT), "a larger batch is checked"


def test_a_pair_of_dimensions_is_checked_once():
    check, logits = ShapeCheck(nn.MSELoss()), torch.randn(4, 1)
    check.require_same(logits, logits)
    assert check.is_due(logits, torch.zeros(4))
    check = ShapeCheck(lambda outputs, targets: outputs.mean())
    check.require_same(logits, torch.zeros(4))
    assert not check.is_due(logits[:2], torch.zeros(2))
    assert not check.is_due((logits,), torch.zeros(4))
    assert not check.is_due(logits, None)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), functional.cross_entropy])
def test_losses_of_torch_that_never_broadcast_are_not_checked(loss):
    assert not ShapeCheck(loss).is_due(torch.randn(4, 3), torch.zeros(4))


def test_a_loss_with_a_forward_of_its_own_is_checked():
    class Broadcasts(nn.CrossEntropyLoss):
        def forward(self, outputs, targets):
            return functional.mse_loss(outputs, targets)

    assert ShapeCheck(Broadcasts()).is_due(COLUMN, FLAT)
    with pytest.raises(DataError, match="would be broadcast"):
        compute(Broadcasts(), COLUMN, FLAT)


def test_a_check_costs_nothing_noticeable():
    check, targets = ShapeCheck(nn.MSELoss()), torch.zeros(4)
    logits = torch.randn(4)
    check.require_same(logits, targets)
    begin = time.perf_counter()
    for _ in range(1000):
        check.is_due(logits, targets)
    assert (time.perf_counter() - begin) / 1000 < 20e-6  # less than 1 us on an idle machine


@pytest.fixture(autouse=True)
def _forget_graphs():
    """Leave other tests their share of the graphs that torch keeps of one function."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{}, {"compile": {"backend": "eager"}}])
def test_a_fit_is_refused_before_its_first_step(options):
    handler = NNHandler(nn.Linear(2, 1), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    before = handler.module.weight.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size")  # torch's own, when it compiles
        with pytest.raises(DataError, match=r"outputs of shape \(4, 1\) and targets of shape \(4,"):
            handler.fit((torch.ones(4, 2), torch.ones(4)), progress_bar=False, **options)
        with pytest.raises(DataError, match="would be broadcast by the loss"):
            handler.evaluate((torch.ones(4, 2), torch.ones(4)))
    assert torch.equal(handler.module.weight, before)
