"""Built-in metrics."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.device_capabilities import accumulation_dtype, has_float64
from fitkit.core.errors import ConfigurationError, DataError, describe
from fitkit.core.state_placement import is_on_host
from fitkit.metrics.metric import MeanMetric, Metric
from fitkit.metrics.outputs import main_output

_SUM_TOLERANCE = 0.02  # probabilities in bfloat16 have a sum of 1 to about 1 %
_NOT_ONE_HOT = (
    "Accuracy received targets of the outputs' shape {} that are not one-hot: pass multilabel=True "
    "if each label counts by itself, or multilabel=False if the highest target is the class."
)


class Accuracy(MeanMetric):
    """The fraction of correct predictions, in ``[0, 1]``.

    Outputs of shape ``(batch, classes, ...)`` are class scores, with targets ``(batch, ...)`` of
    class indices or one-hot targets of the outputs' shape; outputs of the targets' shape are binary
    scores. A ``ModelOutput`` of transformers stands for its logits.

    Args:
        threshold: binary scores above it mean class 1: 0.0 for logits; for probabilities 0.5, which
            is the default with ``BCELoss``.
        multilabel: with ``True``, targets of the outputs' shape ``(batch, labels, ...)`` are binary
            and each label counts. With ``False`` the highest target is the class. By default the
            loss decides: each label counts with torch's binary cross-entropies and
            ``MultiLabelSoftMarginLoss``. With other losses the highest target is the class, and
            targets must be one-hot or probabilities, with a sum of 1 over the classes: others raise
            an error; on an accelerator, which is not waited for, the accuracy is NaN, with a
            warning.
        ignore_index: targets of this value are left out, such as padding; by default those that the
            loss leaves out. ``None``: none.

    >>> float(Accuracy().compute(Accuracy().update(torch.eye(3), torch.tensor([0, 1, 1]))))
    0.6666666666666666
    """

    def __init__(
        self,
        threshold: float = 0.0,
        *,
        multilabel: bool | None = None,
        ignore_index: int | None = -100,
    ) -> None:
        require_number("threshold", threshold)
        if multilabel not in (None, True, False):
            raise ConfigurationError(
                f"multilabel must be True, False or None, received {multilabel!r}."
            )
        _require_index(ignore_index)
        self.threshold = threshold
        self.multilabel = multilabel
        self.ignore_index = ignore_index

    def values(self, outputs: Any, targets: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Whether each prediction is correct, and which targets count."""
        outputs, targets = _tensors(self, outputs, targets)
        shape = outputs.shape
        has_classes = len(shape) > 1 and shape[1] > 1
        rest = shape[:1] if len(shape) == 2 else shape[:1] + shape[2:]
        if has_classes and rest == targets.shape:
            return _counted(outputs.argmax(dim=1) == targets, targets, self.ignore_index)
        if has_classes and shape == targets.shape and not self.multilabel:
            return self._one_hot(outputs, targets)
        if _fit_but_for_ones(shape, targets.shape):
            is_positive = (outputs > self.threshold).reshape(targets.shape)
            return _counted(is_positive == (targets > 0.5), targets, self.ignore_index)
        is_last = len(shape) > 2 and shape[:-1] == targets.shape
        raise DataError(
            f"Accuracy needs outputs (batch, classes, ...) with targets (batch, ...), or both of "
            f"one shape; received {tuple(shape)} and {tuple(targets.shape)}"
            + (": move the classes to the second dimension." if is_last else ".")
        )

    def _one_hot(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.dtype is torch.bool:  # of which torch finds no largest one
            targets = targets.byte()
        is_right = outputs.argmax(dim=1) == targets.argmax(dim=1)
        if self.multilabel is False:
            return is_right
        sums = targets.sum(dim=1, dtype=accumulation_dtype(targets.device))
        is_wrong = (sums - 1.0).abs() > _SUM_TOLERANCE
        if not is_on_host(targets):
            return is_right.to(sums.dtype).masked_fill(is_wrong, math.nan)
        if is_wrong.any():
            raise DataError(_NOT_ONE_HOT.format(tuple(targets.shape)))
        return is_right

    def compute(self, sums: Tensor) -> Tensor:
        """The mean; NaN over nothing, and if targets are not one-hot."""
        mean = super().compute(sums)
        may_warn = self.multilabel is None and is_on_host(sums)  # nothing is read from a device
        if may_warn and sums[1] and mean.isnan():
            warnings.warn(_NOT_ONE_HOT.format("(batch, classes, ...)"), stacklevel=2)
        return mean


class TopKAccuracy(MeanMetric):
    """The fraction of samples whose class is among the ``k`` highest scores, in ``[0, 1]``.

    Args:
        k: at least 1 and at most the number of classes. Outputs are ``(batch, classes)``, targets
            ``(batch,)`` class indices. A ``ModelOutput`` of transformers stands for its logits.
        ignore_index: targets of this value are left out; ``None``: none.
    """

    def __init__(self, k: int = 5, *, ignore_index: int | None = -100) -> None:
        require_count("k", k)
        _require_index(ignore_index)
        self.k = k
        self.ignore_index = ignore_index

    def values(self, outputs: Any, targets: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Whether each class is among the ``k`` highest scores, and which targets count."""
        outputs, targets = _tensors(self, outputs, targets)
        if outputs.ndim != 2 or targets.shape != outputs.shape[:1] or outputs.shape[1] < self.k:
            raise DataError(
                f"TopKAccuracy(k={self.k}) needs outputs (batch, classes) with at least {self.k} "
                f"classes and targets (batch,); received {tuple(outputs.shape)} and "
                f"{tuple(targets.shape)}."
            )
        best = outputs.topk(self.k, dim=1).indices
        is_right = (best == targets.unsqueeze(1)).any(dim=1)
        return _counted(is_right, targets, self.ignore_index)


class MeanSquaredError(MeanMetric):
    """The mean of squared differences, in the targets' units squared."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared differences."""
        return _difference(self, outputs, targets).square()


class MeanAbsoluteError(MeanMetric):
    """The mean of absolute differences, in the targets' units."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The absolute differences."""
        return _difference(self, outputs, targets).abs()


class R2Score(Metric):
    """The coefficient of determination over all elements: 1 is perfect, 0 is the targets' mean."""

    def update(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sums of squared residuals, targets and squared targets, and the number of targets.

        The variance is a small difference of large sums, which float32 would lose. On a device
        without float64 the mean is therefore subtracted from targets, and returned as well.
        """
        residuals = _difference(self, outputs, targets)
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


def _difference(metric: Metric, outputs: Any, targets: Any) -> Tensor:
    outputs, targets = _tensors(metric, outputs, targets)
    if not _fit_but_for_ones(outputs.shape, targets.shape):
        raise DataError(
            f"{type(metric).__name__} needs outputs and targets of one shape, received "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}."
        )
    dtype = accumulation_dtype(outputs.device)
    difference: Tensor = outputs.to(dtype).reshape(targets.shape) - targets.to(dtype)
    return difference


def _tensors(metric: Metric, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Outputs and targets as one tensor each, or ``DataError``."""
    outputs = outputs if isinstance(outputs, Tensor) else main_output(outputs)
    for what, value in (("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            name = type(metric).__name__
            raise DataError(
                f"{name} needs {what} that are one tensor, received {describe(value)}: choose one "
                f"in a subclass of {name} that overrides "
                f"{'values' if isinstance(metric, MeanMetric) else 'update'}(outputs, targets), or "
                f"return a StepOutput with it from a step of your own."
            )
    return outputs, targets


def _fit_but_for_ones(outputs: torch.Size, targets: torch.Size) -> bool:
    """Whether the shapes are equal up to dimensions of size 1, as ``(batch, 1)`` and ``(batch,)``.

    Other shapes with as many elements would be matched in the wrong order.
    """
    if outputs == targets:
        return True
    return [size for size in outputs if size != 1] == [size for size in targets if size != 1]


def _counted(
    is_right: Tensor, targets: Tensor, ignore_index: int | None
) -> Tensor | tuple[Tensor, Tensor]:
    if ignore_index is None or targets.dtype is torch.bool:
        return is_right
    is_whole = not targets.dtype.is_floating_point
    if is_whole and is_on_host(targets) and not (targets.numpy() == ignore_index).any():
        return is_right  # which takes a third of the time to add up
    return is_right, targets != ignore_index


def _require_index(ignore_index: Any) -> None:
    if ignore_index is not None and type(ignore_index) is not int:
        raise ConfigurationError(
            f"ignore_index must be a whole number or None, received {ignore_index!r}."
        )
