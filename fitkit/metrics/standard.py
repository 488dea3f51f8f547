"""Built-in metrics."""

from __future__ import annotations

import torch
from torch import Tensor

from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.device_capabilities import accumulation_dtype, has_float64
from fitkit.core.errors import DataError
from fitkit.metrics.metric import MeanMetric, Metric


class Accuracy(MeanMetric):
    """The fraction of correct predictions, in ``[0, 1]``.

    Outputs of shape ``(batch, classes, ...)`` are class scores, with targets ``(batch, ...)`` of
    class indices or one-hot targets of the outputs' shape; outputs of the targets' shape are binary
    scores.

    Args:
        threshold: binary scores above it mean class 1: 0.0 for logits, 0.5 for probabilities.

    >>> float(Accuracy().compute(Accuracy().update(torch.eye(3), torch.tensor([0, 1, 1]))))
    0.6666666666666666
    """

    def __init__(self, threshold: float = 0.0) -> None:
        require_number("threshold", threshold)
        self.threshold = threshold

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether each prediction is correct."""
        shape = outputs.shape
        has_classes = len(shape) > 1 and shape[1] > 1
        rest = shape[:1] if len(shape) == 2 else shape[:1] + shape[2:]
        if has_classes and rest == targets.shape:
            return outputs.argmax(dim=1) == targets
        if has_classes and shape == targets.shape:
            return outputs.argmax(dim=1) == targets.argmax(dim=1)
        if outputs.numel() == targets.numel():
            return (outputs > self.threshold).reshape(targets.shape) == (targets > 0.5)
        raise DataError(
            f"Accuracy needs outputs (batch, classes, ...) with targets (batch, ...), or both of "
            f"one shape; received {tuple(outputs.shape)} and {tuple(targets.shape)}."
        )


class TopKAccuracy(MeanMetric):
    """The fraction of samples whose class is among the ``k`` highest scores, in ``[0, 1]``.

    Args:
        k: at least 1 and at most the number of classes. Outputs are ``(batch, classes)``, targets
            ``(batch,)`` class indices.
    """

    def __init__(self, k: int = 5) -> None:
        require_count("k", k)
        self.k = k

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether each class is among the ``k`` highest scores."""
        if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or outputs.shape[1] < self.k:
            raise DataError(
                f"TopKAccuracy(k={self.k}) needs outputs (batch, classes) with at least {self.k} "
                f"classes and targets (batch,); received {tuple(outputs.shape)} and "
                f"{tuple(targets.shape)}."
            )
        best = outputs.topk(self.k, dim=1).indices
        return (best == targets.unsqueeze(1)).any(dim=1)


class MeanSquaredError(MeanMetric):
    """The mean of squared differences, in the targets' units squared."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared differences."""
        return _difference("MeanSquaredError", outputs, targets).square()


class MeanAbsoluteError(MeanMetric):
    """The mean of absolute differences, in the targets' units."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The absolute differences."""
        return _difference("MeanAbsoluteError", outputs, targets).abs()


class R2Score(Metric):
    """The coefficient of determination over all elements: 1 is perfect, 0 is the targets' mean."""

    def update(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sums of squared residuals, targets and squared targets, and the number of targets.

        The variance is a small difference of large sums, which float32 would lose. On a device
        without float64 the mean is therefore subtracted from targets, and returned as well.
        """
        residuals = _difference("R2Score", outputs, targets)
        squares = residuals.square().sum()
        count = torch.full_like(squares, targets.numel())
        targets = targets.to(residuals.dtype)
        if has_float64(targets.device):
            return torch.stack([squares, targets.sum(), targets.square().sum(), count])
        mean = targets.mean()
        rest = targets - mean
        return torch.stack([squares, rest.sum(), rest.square().sum(), count, mean])

    def add_up(self, statistics: Tensor) -> Tensor:
        """The sums for the original targets."""
        if statistics.shape[1] == 4:
            return statistics[0] if len(statistics) == 1 else statistics.sum(0)
        if statistics.dtype is not torch.float64:  # one batch: its score needs no mean
            return statistics[0, :4]
        squares, rest, rest_squares, count, mean = statistics.unbind(1)
        total = rest + count * mean
        total_squares = rest_squares + 2 * mean * rest + count * mean.square()
        return torch.stack([squares, total, total_squares, count]).sum(1)

    def compute(self, sums: Tensor) -> Tensor:
        """One minus the residual fraction of the variance."""
        residual, total, squares, count = sums.unbind()
        return 1.0 - residual / (squares - total * total / count)


def _difference(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.numel() != targets.numel():
        raise DataError(
            f"{name} needs outputs and targets of one shape, received {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}."
        )
    dtype = accumulation_dtype(outputs.device)
    return outputs.to(dtype).reshape(targets.shape) - targets.to(dtype)
