"""What the built-in metrics take over from the loss where they were not told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn import functional

from fitkit.core.component_spec import unwrap_partial
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
    loss, options = unwrap_partial(loss, kwargs or {})
    if isinstance(loss, nn.Module):
        options = vars(loss)
    return {
        name: _fit(metric, loss, options) if type(metric) is Accuracy else metric
        for name, metric in metrics.items()
    }


def _fit(metric: Accuracy, loss: Any, options: Mapping[str, Any]) -> Accuracy:
    threshold, multilabel, ignore_index = metric.threshold, metric.multilabel, metric.ignore_index
    if threshold == 0.0 and (
        isinstance(loss, nn.BCELoss) or loss is functional.binary_cross_entropy
    ):
        threshold = 0.5
    if multilabel is None and (isinstance(loss, _LABEL_LOSSES) or loss in _LABEL_FUNCTIONS):
        multilabel = True
    if ignore_index == -100:
        ignore_index = options.get("ignore_index", -100)
    return Accuracy(threshold, multilabel=multilabel, ignore_index=ignore_index)
