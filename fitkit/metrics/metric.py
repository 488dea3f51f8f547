"""Metric: additive statistics of a batch, and the number that their sums stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import ConfigurationError, DataError
from fitkit.metrics.stateful import accumulates

MetricFunction = Callable[[Any, Any], Any]


class Metric(ABC):
    """A metric whose statistics can be added: over batches, and over processes.

    A subclass says what to add up (``update``) and what the sums mean (``compute``). It keeps no
    state itself.

    >>> class MeanOutput(Metric):
    ...     def update(self, outputs, targets):
    ...         return torch.stack([outputs.sum(), torch.tensor(float(outputs.numel()))])
    ...     def compute(self, sums):
    ...         return sums[0] / sums[1]
    """

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> Tensor:
        """The statistics of one batch, a tensor of shape ``(statistics,)`` on any device."""

    @abstractmethod
    def compute(self, sums: Tensor) -> Tensor | float:
        """The metric's value from the sums over batches, float64 of shape ``(statistics,)``."""


class MeanMetric(Metric):
    """A metric that is a mean over samples.

    Subclasses (or ``function``) give one value per sample, or per element of a sample.
    """

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The values to average, of any shape."""

    def update(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the values and their number."""
        values = self.values(outputs, targets).to(torch.float64)
        return torch.stack([values.sum(), values.new_tensor(values.numel())])

    def compute(self, sums: Tensor) -> Tensor:
        """The mean; NaN over nothing."""
        return sums[0] / sums[1]


def as_scalar(name: str, value: Any) -> Any:
    """A batch's value of a metric function: a number or a tensor of one element, detached.

    Raises:
        DataError: it is anything else.
    """
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value.detach().reshape(())
        received = f"a tensor of shape {tuple(value.shape)}"
    elif isinstance(value, (int, float)) or hasattr(value, "__float__"):
        return float(value)
    else:
        received = f"a {type(value).__name__}"
    raise DataError(
        f"metric {name!r} must return its mean over the batch, one number, received {received}: "
        f"reduce it, for instance with .mean()."
    )


def is_reserved(name: str) -> bool:
    """Whether ``name`` is, or is made of, a column that fitkit logs itself."""
    return name in ("loss", "lr", "epoch") or name.startswith("val_")


def require_metric(name: Any, metric: Any, taken: Any) -> Any:
    """The metric, if it is one and its name can be a new column of the logs.

    Raises:
        ConfigurationError: it is not, or the name is no string, reserved, or taken.
    """
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
    if not (isinstance(metric, Metric) or accumulates(metric) or callable(metric)):
        raise ConfigurationError(
            f"metric {name!r} must be a function (outputs, targets) -> mean over the batch, a "
            f"fitkit.Metric or a torchmetrics Metric, received {type(metric).__name__}."
        )
    return metric
