"""What a phase adds up: means weighted by samples, and the statistics of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitkit.core.devices import accumulation_dtype
from fitkit.core.errors import CheckpointError, DataError
from fitkit.core.logs import Deferred
from fitkit.metrics.metric import Metric, as_statistics
from fitkit.metrics.running_sum import RunningSum, is_vector, weighted_sum


class WeightedMean:
    """The mean of values weighted by samples, added in float64."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._values = RunningSum(weighted_sum, at_once=False)
        self._weight = 0

    def add(self, value: Any, weight: int) -> None:
        """Add one value (a number or a scalar tensor) with its weight in samples."""
        self._weight += weight
        self._values.add(value, weight)

    def sums(self) -> tuple[Tensor, int]:
        """The weighted sum (float64 scalar) and the weight, without changing anything."""
        total = self._values.total()
        return (torch.zeros((), dtype=torch.float64) if total is None else total), self._weight

    def packed(self) -> tuple[Tensor, list[float]]:
        """What is added over processes: sums, float64, and further ones that the host knows."""
        total, weight = self.sums()
        return total.reshape(1), [weight]

    def state_dict(self) -> dict[str, Any]:
        """The sum, and the values that wait to be added."""
        weights = self._values.weights
        return {
            "total": self._values.added(),
            "weight": self._weight - sum(weights),
            "waiting": self._values.waiting(),
            "weights": weights,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over sums.

        Raises:
            CheckpointError: they are none.
        """
        total, waiting = state_dict["total"], state_dict["waiting"]
        weights = [state_dict["weight"], *state_dict["weights"]]
        fits = all(type(weight) is int for weight in weights)
        fits = fits and (total is None or is_vector(total, ndim=0))
        fits = fits and (waiting is None or is_vector(waiting, ndim=1))
        if not fits or len(weights) - 1 != (0 if waiting is None else len(waiting)):
            raise CheckpointError("the sums of the epoch in the checkpoint are no numbers.")
        self._values.load(total, waiting, weights[1:])
        self._weight = sum(weights)


class MetricSums:
    """The summed statistics of one ``Metric``.

    Args:
        metric: the metric.
        device: where outputs will be.
    """

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric = metric
        self._device = device
        self._needs_device = False
        is_plain = type(metric).add_up is Metric.add_up
        self._add_up = None if is_plain else lambda rows, _: metric.add_up(rows)
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._rows = RunningSum(self._add_up, at_once=True)
        self._num_statistics: int | None = None

    def _measured(self, measure: Callable[[Any, Any], Any], outputs: Any, targets: Any) -> Any:
        """What the metric says of a batch, with the device as torch's default where it needs that.

        Many write ``torch.tensor(...)`` beside outputs, which are on an accelerator; others compute
        on the host, where such a default would be in the way. The first batch shows which it is.
        """
        if self._needs_device:
            with self._device:
                return measure(outputs, targets)
        try:
            return measure(outputs, targets)
        except RuntimeError:
            if self._device.type == "cpu":
                raise
        with self._device:
            found = measure(outputs, targets)
        self._needs_device = True
        return found

    def _statistics(self, name: str, outputs: Any, targets: Any) -> Tensor:
        row = as_statistics(name, self._measured(self.metric.update, outputs, targets))
        if self._num_statistics not in (None, len(row)):
            raise DataError(
                f"update of metric {name!r} must return as many statistics for each batch, "
                f"received {len(row)} after {self._num_statistics}."
            )
        self._num_statistics = len(row)
        return row

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; its own value, computed when it is read.

        Raises:
            DataError: the metric does not give a vector.
        """
        row = self._statistics(name, outputs, targets)
        self._rows.add(row)
        return Deferred(lambda: self._value_of(row))

    def _value_of(self, row: Tensor) -> Any:
        row = row.to(accumulation_dtype(row.device)).unsqueeze(0)
        return self.metric.compute(self.metric.add_up(row))

    def stand_in(self, name: str, outputs: Any, targets: Any) -> None:
        """Add nothing, in as many sums as a batch would give."""
        if self._num_statistics is None and self.sums is None:
            self._rows.add(torch.zeros_like(self._statistics(name, outputs, targets)))

    @property
    def sums(self) -> Tensor | None:
        """The sums, float64 of shape ``(statistics,)``; ``None`` if nothing was added."""
        return self._rows.total()

    def packed(self) -> tuple[Tensor, list[float]]:
        """What is added over processes: sums, float64, and further ones that the host knows."""
        sums = self._rows.total()
        return (torch.zeros(0, dtype=torch.float64) if sums is None else sums), []

    def state_dict(self) -> dict[str, Any]:
        """The sums, and statistics that wait to be added where there are any."""
        return with_waiting({"sums": self._rows.added()}, self._rows.waiting())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over sums."""
        sums, waiting = checked_sums(state_dict, ndim=2)
        self.reset()
        self._rows.load(sums, waiting)


def with_waiting(state: dict[str, Any], waiting: Tensor | None) -> dict[str, Any]:
    """A state of sums, and the rows that wait to be added to them where there are any."""
    return state if waiting is None else {**state, "waiting": waiting}


def checked_sums(state_dict: dict[str, Any], *, ndim: int) -> tuple[Tensor | None, Tensor | None]:
    """The sums in a saved state, and the rows that waited to be added.

    Raises:
        CheckpointError: they are none.
    """
    sums, waiting = state_dict["sums"], state_dict.get("waiting")
    fits = sums is None or is_vector(sums, ndim=1)
    if not fits or not (waiting is None or is_vector(waiting, ndim=ndim)):
        raise CheckpointError("the sums of a metric in the checkpoint are no vector of numbers.")
    return sums, waiting
