"""What Accuracy takes over from the loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from fitkit import Accuracy, NNHandler
from fitkit.metrics.fit_to_loss import metrics_for

MULTI_HOT = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
LABEL_SCORES = torch.tensor([[-3.0, 1.0, 2.0], [-3.0, -2.0, -1.0], [3.0, 1.0, -1.0]])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), nn.functional.binary_cross_entropy_with_logits]
)
def test_each_label_counts_as_the_loss_counts_it(loss, size):
    """Also in a batch whose rows happen to be one-hot."""
    handler = NNHandler(nn.Identity(), "cpu")
    handler.set_loss_fn(loss)
    handler.add_metric("accuracy", Accuracy())
    found = handler.evaluate((LABEL_SCORES, MULTI_HOT), batch_size=size)["accuracy"]
    assert found == pytest.approx(8 / 9)


def test_what_was_told_stays_and_other_losses_decide_nothing():
    told = Accuracy(0.3, multilabel=False, ignore_index=None)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    for one in (nn.BCELoss(), loss, None):
        resolved = metrics_for({"told": told, "own": max}, one)
        assert resolved["own"] is max
        assert vars(resolved["told"]) == vars(told)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (nn.BCELoss(), (0.5, True, -100)),
        (partial(nn.functional.binary_cross_entropy_with_logits), (0.0, True, -100)),
        (nn.CrossEntropyLoss(ignore_index=255), (0.0, None, 255)),
        (partial(nn.functional.cross_entropy, ignore_index=255), (0.0, None, 255)),
        (nn.MSELoss(), (0.0, None, -100)),
        (None, (0.0, None, -100)),
    ],
)
def test_what_accuracy_was_not_told_it_does_as_the_loss(loss, expected):
    found = metrics_for({"accuracy": Accuracy()}, loss)["accuracy"]
    assert (found.threshold, found.multilabel, found.ignore_index) == expected
