"""What a phase adds up: means weighted by samples, and the statistics of metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import CheckpointError, DataError
from fitkit.core.logs import Deferred
from fitkit.metrics.metric import MeanMetric, Metric

# Values wait in a list and are added in one operation when so many have come: a step then costs an
# append, not an addition on the device. Saving keeps the list as it is, so that the order of
# additions, and with it the last bit, does not depend on when a checkpoint was made.
FOLD_AFTER = 64


def is_vector(value: Any, *, ndim: int) -> bool:
    """Whether ``value`` is a real tensor with so many dimensions."""
    is_tensor = isinstance(value, Tensor) and value.layout is torch.strided
    return is_tensor and value.ndim == ndim and not value.is_complex()


class WeightedMean:
    """The mean of values weighted by samples, added in float64."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._total: Tensor | None = None
        self._weight = 0
        self._waiting: list[tuple[Any, int]] = []

    def add(self, value: Any, weight: int) -> None:
        """Add one value (a number or a scalar tensor) with its weight in samples."""
        self._waiting.append((value, weight))
        if len(self._waiting) >= FOLD_AFTER:
            self._total, self._weight = self._folded()
            self._waiting = []

    def _folded(self) -> tuple[Tensor | None, int]:
        if not self._waiting:
            return self._total, self._weight
        values = self._stacked()
        weights = torch.tensor([weight for _, weight in self._waiting], dtype=torch.float64)
        total = (values * weights.to(values.device, non_blocking=True)).sum()
        if self._total is not None:
            total = total + self._total
        return total, self._weight + sum(weight for _, weight in self._waiting)

    def _stacked(self) -> Tensor:
        values = [value for value, _ in self._waiting]
        if all(isinstance(value, Tensor) for value in values):
            return torch.stack(values).to(torch.float64)
        return torch.tensor([float(value) for value in values], dtype=torch.float64)

    def sums(self) -> tuple[Tensor, int]:
        """The weighted sum (float64 scalar) and the weight, without changing anything."""
        total, weight = self._folded()
        return (torch.zeros((), dtype=torch.float64) if total is None else total), weight

    def state_dict(self) -> dict[str, Any]:
        """The sum, and the values that wait to be added."""
        return {
            "total": self._total,
            "weight": self._weight,
            "waiting": self._stacked() if self._waiting else None,
            "weights": [weight for _, weight in self._waiting],
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
        if not fits or not (waiting is None or is_vector(waiting, ndim=1)):
            raise CheckpointError("the sums of the epoch in the checkpoint are no numbers.")
        self._total, self._weight = total, weights[0]
        values = [] if waiting is None else list(waiting.unbind())
        self._waiting = list(zip(values, state_dict["weights"], strict=True))


def merged_means(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one ``WeightedMean`` with the sums of several."""
    mean = WeightedMean()
    total, weight = torch.zeros((), dtype=torch.float64), 0
    for state in states:
        mean.load_state_dict(state)
        more, count = mean.sums()
        total, weight = total + more.to(total.device), weight + count
    return {"total": total, "weight": weight, "waiting": None, "weights": []}


class MetricSums:
    """The summed statistics of one ``Metric``."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._sums: Tensor | None = None

    def reset(self) -> None:
        """Begin anew."""
        self._sums = None

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; its own value, computed when it is read.

        Raises:
            DataError: the metric does not give a vector.
        """
        statistics = self.metric.update(outputs, targets)
        if not isinstance(statistics, Tensor) or statistics.ndim != 1:
            raise DataError(
                f"update of metric {name!r} must return a tensor of shape (statistics,), "
                f"received {type(statistics).__name__}."
            )
        statistics = statistics.detach().to(torch.float64)
        self._sums = statistics if self._sums is None else self._sums + statistics
        return Deferred(lambda: self.metric.compute(statistics))

    def stand_in(self, outputs: Any, targets: Any) -> None:
        """Add nothing, in as many sums as a batch would give."""
        if self.sums is None:
            statistics = self.metric.update(outputs, targets)
            self.load_state_dict({"sums": torch.zeros_like(statistics, dtype=torch.float64)})

    @property
    def sums(self) -> Tensor | None:
        """The sums, float64 of shape ``(statistics,)``; ``None`` if nothing was added."""
        return self._sums

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"sums": self._sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over sums."""
        self._sums = checked_sums(state_dict)


def checked_sums(state_dict: dict[str, Any]) -> Tensor | None:
    """The sums in a saved state.

    Raises:
        CheckpointError: they are none.
    """
    sums: Tensor | None = state_dict["sums"]
    if sums is not None and not is_vector(sums, ndim=1):
        raise CheckpointError("the sums of a metric in the checkpoint are no vector of numbers.")
    return sums


def sums_of(metric: Metric) -> MetricSums:
    """What adds up ``metric``, by the shorter way where its statistics are those of a mean."""
    is_mean = getattr(metric.update, "__func__", None) is MeanMetric.update
    return MeanSums(metric) if is_mean and isinstance(metric, MeanMetric) else MetricSums(metric)


class MeanSums(MetricSums):
    """The summed values of a ``MeanMetric`` and their number, which is counted without the device.

    The sums are those that ``MeanMetric.update`` would give, bit for bit. Values that are true or
    false are counted, and their counts added when ``FOLD_AFTER`` have come: they are whole numbers,
    whose sum does not depend on the order.
    """

    def __init__(self, metric: MeanMetric) -> None:
        super().__init__(metric)
        self._values = metric.values
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._total: Tensor | None = None
        self._number = 0
        self._counts: list[Tensor] = []

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; its own value, computed when it is read."""
        values = self._values(outputs, targets).detach()
        number = values.numel()
        self._number += number
        if values.dtype is torch.bool:
            total = values.count_nonzero()
            self._counts.append(total)
            if len(self._counts) >= FOLD_AFTER:
                self._fold()
        else:
            self._fold()
            total = values.to(torch.float64).sum()
            self._total = total if self._total is None else self._total + total
        return Deferred(lambda: self.metric.compute(_pair(total, number)))

    def _fold(self) -> None:
        if self._counts:
            count = torch.stack(self._counts).sum().to(torch.float64)
            self._total = count if self._total is None else self._total + count
            self._counts = []

    @property
    def sums(self) -> Tensor | None:
        """The sum of the values and their number; ``None`` if nothing was added."""
        self._fold()
        return None if self._total is None else _pair(self._total, self._number)

    def state_dict(self) -> dict[str, Any]:
        """The sums."""
        return {"sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over sums."""
        self.reset()
        sums = checked_sums(state_dict)
        if sums is not None:
            if len(sums) != 2:
                raise CheckpointError("the sums of a mean in the checkpoint are not two.")
            self._total, number = sums.unbind()
            self._number = int(number)


def _pair(total: Tensor, number: int) -> Tensor:
    total = total.to(torch.float64)
    return torch.stack([total, total.new_tensor(number)])
