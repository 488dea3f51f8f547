"""Metric: additive statistics of a batch, and the value computed from their sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.errors import ConfigurationError, DataError, describe
from fitkit.core.state_placement import is_on_host
from fitkit.metrics.epoch_metric import EpochMetric
from fitkit.metrics.metric_state import require_state
from fitkit.metrics.stateful import accumulates

MetricFunction = Callable[[Any, Any], Any]


class Metric(ABC):
    """A metric whose statistics are summed over batches and ranks.

    A subclass defines the statistics of a batch (``update``) and the value of their sums
    (``compute``). It keeps no state, so sums are exact for a short last batch, and are saved and
    all-reduced without its help. If ``update`` creates tensors without naming a device, they are
    created on the device of the outputs; returning a number is cheaper.

    >>> class MeanOutput(Metric):
    ...     def update(self, outputs, targets):
    ...         return outputs.sum(), outputs.numel()
    ...     def compute(self, sums):
    ...         return sums[0] / sums[1]
    """

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> Tensor | Sequence[Tensor | float]:
        """The statistics of one batch, the same number for each batch.

        Returns:
            a tensor of shape ``(statistics,)`` on any device, or a sequence of numbers and scalar
            tensors.
        """

    def add_up(self, statistics: Tensor) -> Tensor:
        """The sums over batches; override it if statistics cannot be added directly.

        Args:
            statistics: float64 of shape ``(batches, statistics)``; for the value of a single batch
                float32 on a device without float64.

        Returns:
            sums of shape ``(sums,)`` in the same dtype, which can be added to other sums.
        """
        return statistics.sum(0)

    @abstractmethod
    def compute(self, sums: Tensor) -> Tensor | float:
        """The metric's value for the sums over batches, float64 of shape ``(sums,)``."""


class MeanMetric(Metric):
    """A metric that is a mean; subclasses return one value per sample or per element."""

    @abstractmethod
    def values(self, outputs: Any, targets: Any) -> Tensor | tuple[Tensor, Tensor]:
        """The values to average, of any shape.

        Returns:
            the values, or the values and a boolean tensor of their shape: those for which it is
            ``False`` are left out, such as padding.
        """

    def update(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the values and their number."""
        values, number = counted_values(self.values(outputs, targets))
        total = values.to(accumulation_dtype(values.device)).sum()
        if isinstance(number, Tensor):
            return torch.stack([total, number.to(total.dtype)])
        return torch.stack([total, torch.full_like(total, number)])

    def compute(self, sums: Tensor) -> Tensor:
        """The mean; NaN over nothing."""
        return sums[0] / sums[1]


def as_scalar(name: str, value: Any) -> Any:
    """A batch's value of a metric function as a number or a detached scalar, or ``DataError``."""
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value.detach().reshape(())
    elif isinstance(value, (int, float)) or hasattr(value, "__float__"):
        return float(value)
    raise DataError(
        f"metric {name!r} must return its mean over the batch, one number, received "
        f"{describe(value)}: reduce it, for instance with .mean()."
    )


def counted_values(result: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, int | Tensor]:
    """What ``MeanMetric.values`` returned, with zeros for what is left out, and the number."""
    if not isinstance(result, tuple):
        return result, result.numel()
    values, counts = result
    if values.shape != counts.shape or counts.dtype is not torch.bool:
        raise DataError(
            f"values of a MeanMetric must return a boolean tensor of the shape of the values "
            f"beside them, {tuple(values.shape)}; received {describe(counts)}, {counts.dtype}."
        )
    kept = values & counts if values.dtype is torch.bool else values.masked_fill(~counts, 0)
    return kept, counts.count_nonzero()


def as_statistics(name: str, value: Any) -> Tensor:
    """The result of ``Metric.update`` as a detached ``(statistics,)`` tensor, or ``DataError``."""
    if isinstance(value, (tuple, list)):
        if value and all(_is_number(item) for item in value):
            return _stacked(value).detach()
    elif isinstance(value, Tensor) and value.ndim == 1 and not value.is_complex():
        return value.detach()
    dtype = f", {value.dtype}" if isinstance(value, Tensor) else ""
    raise DataError(
        f"update of metric {name!r} must return a tensor of shape (statistics,), or a sequence of "
        f"numbers and scalar tensors, all of them real; received {describe(value)}{dtype}."
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real)


def _stacked(scalars: Sequence[Tensor | float]) -> Tensor:
    """Numbers and scalar tensors as one vector, on the device of the first that is on one."""
    devices = [s.device for s in scalars if isinstance(s, Tensor) and not is_on_host(s)]
    device = devices[0] if devices else torch.device("cpu")
    dtype = accumulation_dtype(device)
    return torch.stack(
        [
            scalar.reshape(()).to(dtype).to(device)
            if isinstance(scalar, Tensor)
            else torch.full((), float(scalar), dtype=dtype, device=device)
            for scalar in scalars
        ]
    )


def is_reserved(name: str) -> bool:
    """Whether fitkit itself logs a value under ``name``."""
    return name in ("loss", "lr", "epoch") or name.startswith("val_")


def require_metric(name: Any, metric: Any, taken: Any) -> Any:
    """The metric, or ``ConfigurationError`` if it or its name is invalid, or the name in use."""
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"a metric's name must be a non-empty string, received {name!r}.")
    if is_reserved(name):
        raise ConfigurationError(
            f"metric name {name!r} clashes with a name that fitkit logs itself ('loss', 'lr', "
            f"'epoch', and 'val_*' for validation): choose another."
        )
    if name in taken:
        raise ConfigurationError(f"metric {name!r} was already added: choose another name.")
    if isinstance(metric, type):
        raise ConfigurationError(
            f"metric {name!r} is the class {metric.__name__}: pass an instance of it."
        )
    if isinstance(metric, EpochMetric):
        return metric
    if not (isinstance(metric, Metric) or accumulates(metric) or callable(metric)):
        raise ConfigurationError(
            f"metric {name!r} must be a function (outputs, targets) -> mean over the batch, a "
            f"fitkit.Metric, a fitkit.EpochMetric or a torchmetrics Metric, received "
            f"{type(metric).__name__}."
        )
    if accumulates(metric) and not isinstance(metric, Metric):
        require_state(name, metric)
    return metric
