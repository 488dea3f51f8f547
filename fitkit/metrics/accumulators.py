"""Accumulators of one pass: sample-weighted means, and the summed statistics of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.errors import CheckpointError, DataError
from fitkit.core.logs import Deferred
from fitkit.metrics.metric import MeanMetric, Metric, as_statistics
from fitkit.metrics.running_sum import FOLD_AFTER, RunningSum, is_real, weighted_sum


class WeightedMean:
    """The mean of values weighted by samples, summed in float64."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Discard everything added."""
        self._values = RunningSum(weighted_sum, at_once=False)
        self._weight = 0

    def add(self, value: Any, weight: int) -> None:
        """Add one value (a number or a scalar tensor) with its weight in samples."""
        self._weight += weight
        self._values.add(value, weight)

    def sums(self) -> tuple[Tensor, int]:
        """The weighted sum (float64 scalar) and the weight."""
        total = self._values.total()
        return (torch.zeros((), dtype=torch.float64) if total is None else total), self._weight

    def packed(self) -> tuple[Tensor, list[float]]:
        """The terms of a sum over ranks: a float64 vector, and numbers that the host knows."""
        total, weight = self.sums()
        return total.reshape(1), [weight]

    def state_dict(self) -> dict[str, Any]:
        """The sum, and the values that are not added yet."""
        weights = self._values.weights
        return {
            "total": self._values.added(),
            "weight": self._weight - sum(weights),
            "waiting": self._values.waiting(),
            "weights": weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sum, or raise ``CheckpointError``."""
        total, waiting = state_dict["total"], state_dict["waiting"]
        weights = [state_dict["weight"], *state_dict["weights"]]
        fits = all(type(weight) is int for weight in weights)
        fits = fits and (total is None or is_real(total, ndim=0))
        fits = fits and (waiting is None or is_real(waiting, ndim=1))
        if not fits or len(weights) - 1 != (0 if waiting is None else len(waiting)):
            raise _invalid("sums of the epoch")
        self._values.load(total, waiting, weights[1:])
        self._weight = sum(weights)


class MetricAccumulator:
    """The summed statistics of a ``Metric``, whose outputs will be on ``device``."""

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric = metric
        self._device = device
        self._needs_device = False
        is_plain = type(metric).add_up is Metric.add_up
        self._add_up = None if is_plain else lambda rows, _: metric.add_up(rows)
        self.reset()

    def reset(self) -> None:
        """Discard everything added."""
        self._rows = RunningSum(self._add_up, at_once=True)
        self._num_statistics: int | None = None

    def _call(self, function: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> Any:
        """The metric's function of a batch, if necessary with the device as torch's default.

        Many metrics write ``torch.tensor(...)`` beside outputs on an accelerator; others compute on
        the host, where that default would fail. The first batch shows which kind it is.
        """
        if self._needs_device:
            with self._device:
                return function(outputs, targets)
        try:
            return function(outputs, targets)
        except RuntimeError:
            if self._device.type == "cpu":
                raise
        with self._device:
            result = function(outputs, targets)
        self._needs_device = True
        return result

    def _statistics(self, name: str, outputs: Any, targets: Any) -> Tensor:
        row = as_statistics(name, self._call(self.metric.update, outputs, targets))
        if self._num_statistics not in (None, len(row)):
            raise DataError(
                f"update of metric {name!r} must return as many statistics for each batch, "
                f"received {len(row)} after {self._num_statistics}."
            )
        self._num_statistics = len(row)
        return row

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; return its own value, which is computed when it is read."""
        row = self._statistics(name, outputs, targets)
        self._rows.add(row)
        return Deferred(self._value_of, row)

    def _value_of(self, row: Tensor) -> Any:
        row = row.to(accumulation_dtype(row.device)).unsqueeze(0)
        return self.metric.compute(self.metric.add_up(row))

    def update_empty(self, name: str, outputs: Any, targets: Any) -> None:
        """Add zeros, as many as a batch has statistics."""
        if self._num_statistics is None and self.sums is None:
            self._rows.add(torch.zeros_like(self._statistics(name, outputs, targets)))

    @property
    def sums(self) -> Tensor | None:
        """The sums, float64 of shape ``(statistics,)``; ``None`` if nothing was added."""
        return self._rows.total()

    def packed(self) -> tuple[Tensor, list[float]]:
        """The terms of a sum over ranks: a float64 vector, and numbers that the host knows."""
        sums = self._rows.total()
        return (torch.zeros(0, dtype=torch.float64) if sums is None else sums), []

    def state_dict(self) -> dict[str, Any]:
        """The sums, and rows that are not added yet, if any."""
        return _state(self._rows.added(), self._rows.waiting())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums, or raise ``CheckpointError``."""
        sums, waiting = _checked_state(state_dict, waiting_ndim=2)
        self.reset()
        self._rows.load(sums, waiting)


class MeanAccumulator(MetricAccumulator):
    """The summed values of a ``MeanMetric``, and their number, which is known without the device.

    The sums are those of ``MeanMetric.update``, bit for bit. Booleans are counted, and
    ``FOLD_AFTER`` counts added at a time: sums of whole numbers do not depend on the order.
    """

    def __init__(self, metric: MeanMetric, device: torch.device) -> None:
        self._values = metric.values
        super().__init__(metric, device)

    def reset(self) -> None:
        """Discard everything added."""
        self._rows = RunningSum(at_once=True)
        self._number = 0
        self._counts: list[Tensor] = []

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; return its own value, which is computed when it is read."""
        values = self._call(self._values, outputs, targets).detach()
        number = values.numel()
        self._number += number
        if values.dtype is torch.bool:
            total = values.count_nonzero()
            self._counts.append(total)
            if len(self._counts) >= FOLD_AFTER:
                self._add_counts()
        else:
            self._add_counts()
            total = values.to(accumulation_dtype(values.device)).sum()
            self._rows.add(total)
        return Deferred(self._value_of_mean, total, number)

    def _value_of_mean(self, total: Tensor, number: int) -> Any:
        return self.metric.compute(_pair(total.to(accumulation_dtype(total.device)), number))

    def update_empty(self, name: str, outputs: Any, targets: Any) -> None:
        """Add a zero; a mean always has two sums."""
        if self.sums is None:
            self._rows.add(torch.zeros((), dtype=torch.float64))

    def _add_counts(self) -> None:
        if self._counts:
            self._rows.add(torch.stack(self._counts).sum())
            self._counts = []

    @property
    def sums(self) -> Tensor | None:
        """The sum of the values and their number; ``None`` if nothing was added."""
        self._add_counts()
        total = self._rows.total()
        return None if total is None else _pair(total, self._number)

    def packed(self) -> tuple[Tensor, list[float]]:
        """The terms of a sum over ranks: a float64 vector, and numbers that the host knows."""
        self._add_counts()
        total = self._rows.total()
        if total is None:
            return torch.zeros(0, dtype=torch.float64), []
        return total.reshape(1), [self._number]

    def state_dict(self) -> dict[str, Any]:
        """The sums, and rows that are not added yet, if any."""
        self._add_counts()
        added, waiting = self._rows.added(), self._rows.waiting()
        if waiting is not None and not waiting.is_floating_point():
            added, waiting = self._rows.total(), None
        if added is None and waiting is not None:
            added = torch.zeros((), dtype=torch.float64)
        return _state(None if added is None else _pair(added, self._number), waiting)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums, or raise ``CheckpointError``."""
        self.reset()
        sums, waiting = _checked_state(state_dict, waiting_ndim=1)
        if sums is not None:
            if len(sums) != 2:
                raise _invalid("sums of a mean, which must be two,")
            total, number = sums.unbind()
            self._rows.load(total, waiting)
            self._number = int(number)


def make_accumulator(metric: Metric, device: torch.device) -> MetricAccumulator:
    """A ``MeanAccumulator`` if the metric has the statistics of ``MeanMetric``."""
    is_mean = getattr(metric.update, "__func__", None) is MeanMetric.update
    if is_mean and isinstance(metric, MeanMetric):
        return MeanAccumulator(metric, device)
    return MetricAccumulator(metric, device)


def _pair(total: Tensor, number: int) -> Tensor:
    return torch.stack([total, torch.full_like(total, number)])


def _state(sums: Tensor | None, waiting: Tensor | None) -> dict[str, Any]:
    return {"sums": sums} if waiting is None else {"sums": sums, "waiting": waiting}


def _checked_state(state: dict[str, Any], *, waiting_ndim: int) -> tuple[Any, Any]:
    sums, waiting = state["sums"], state.get("waiting")
    fits = sums is None or is_real(sums, ndim=1)
    if not fits or not (waiting is None or is_real(waiting, ndim=waiting_ndim)):
        raise _invalid("sums of a metric")
    return sums, waiting


def _invalid(sums: str) -> CheckpointError:
    return CheckpointError(
        f"the {sums} in the checkpoint are invalid: the file was altered, use another."
    )
