"""What the built-in metrics take over from the loss where they were not told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.nn import functional

from fitkit.metrics.standard import Accuracy

_LABEL_LOSSES = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
_LABEL_FUNCTIONS = (
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.multilabel_soft_margin_loss,
)


def metrics_for(
    metrics: Mapping[str, Any], loss: Any = None, kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The metrics, with ``Accuracy`` counting as the loss does where it was not told otherwise."""
    options = dict(kwargs or {})
    while isinstance(loss, partial):
        loss, options = loss.func, {**loss.keywords, **options}
    if isinstance(loss, nn.Module):
        options = dict(vars(loss))
    of_labels = isinstance(loss, _LABEL_LOSSES) or loss in _LABEL_FUNCTIONS
    is_probability = isinstance(loss, nn.BCELoss) or loss is functional.binary_cross_entropy
    return {
        name: Accuracy(
            0.5 if is_probability and metric.threshold == 0.0 else metric.threshold,
            multilabel=True if of_labels and metric.multilabel is None else metric.multilabel,
            ignore_index=options.get("ignore_index", -100)
            if metric.ignore_index == -100
            else metric.ignore_index,
        )
        if type(metric) is Accuracy
        else metric
        for name, metric in metrics.items()
    }
