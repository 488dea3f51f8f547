"""Metric: additive statistics of a batch, and the number that their sums stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fitkit.core.devices import accumulation_dtype, is_on_host
from fitkit.core.errors import ConfigurationError, DataError
from fitkit.metrics.stateful import accumulates

MetricFunction = Callable[[Any, Any], Any]


class Metric(ABC):
    """A metric whose statistics can be added: over batches, and over processes.

    A subclass says what to add up (``update``) and what the sums mean (``compute``). It keeps no
    state itself. Where ``update`` mixes outputs of an accelerator with tensors that it makes, and
    names no device, those are made there; a number costs less than a tensor that is made of it.

    >>> class MeanOutput(Metric):
    ...     def update(self, outputs, targets):
    ...         return outputs.sum(), outputs.numel()
    ...     def compute(self, sums):
    ...         return sums[0] / sums[1]
    """

    @abstractmethod
    def update(self, outputs: Any, targets: Any) -> Tensor | Sequence[Tensor | float]:
        """The statistics of one batch, as many for each batch.

        Returns:
            a tensor of shape ``(statistics,)`` on any device, or a sequence of numbers and scalar
            tensors.
        """

    def add_up(self, statistics: Tensor) -> Tensor:
        """The sums over batches; override it where statistics cannot be added as they are.

        Args:
            statistics: of several batches, float64 of shape ``(batches, statistics)``; or of one
                batch for its own value, in float32 on a device without float64.

        Returns:
            the same type, of shape ``(sums,)``, which can be added to other sums.
        """
        return statistics.sum(0)

    @abstractmethod
    def compute(self, sums: Tensor) -> Tensor | float:
        """The metric's value from the sums over batches, float64 of shape ``(sums,)``."""


class MeanMetric(Metric):
    """A metric that is a mean over samples.

    Subclasses (or ``function``) give one value per sample, or per element of a sample.
    """

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The values to average, of any shape."""

    def update(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the values and their number."""
        values = self.values(outputs, targets)
        total = values.to(accumulation_dtype(values.device)).sum()
        return torch.stack([total, torch.full_like(total, values.numel())])

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


def as_statistics(name: str, value: Any) -> Tensor:
    """What ``update`` of a metric returned, as a detached tensor of shape ``(statistics,)``.

    Raises:
        DataError: it is anything else.
    """
    if isinstance(value, (tuple, list)):
        if value and all(_is_number(one) for one in value):
            return _stacked(value).detach()
    elif isinstance(value, Tensor) and value.ndim == 1 and not value.is_complex():
        return value.detach()
    shape = f" of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else ""
    raise DataError(
        f"update of metric {name!r} must return a tensor of shape (statistics,), or a sequence of "
        f"numbers and scalar tensors, all of them real; received a {type(value).__name__}{shape}."
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real)


def _stacked(scalars: Sequence[Tensor | float]) -> Tensor:
    """Numbers and scalar tensors as one vector, on the device where any of them is."""
    devices = [one.device for one in scalars if isinstance(one, Tensor) and not is_on_host(one)]
    device = devices[0] if devices else torch.device("cpu")
    dtype = accumulation_dtype(device)
    return torch.stack(
        [
            one.reshape(()).to(dtype).to(device)
            if isinstance(one, Tensor)
            else torch.full((), float(one), dtype=dtype, device=device)
            for one in scalars
        ]
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
