"""MeanSums: the shorter way of adding up a metric that is a mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitkit.core.devices import accumulation_dtype
from fitkit.core.errors import CheckpointError
from fitkit.core.logs import Deferred
from fitkit.metrics.metric import MeanMetric, Metric
from fitkit.metrics.running_sum import FOLD_AFTER, RunningSum
from fitkit.metrics.sums import MetricSums, checked_sums, with_waiting


class MeanSums(MetricSums):
    """The summed values of a ``MeanMetric`` and their number, which is counted without the device.

    The sums are those that ``MeanMetric.update`` would give, bit for bit. Values that are true or
    false are counted, and their counts added when ``FOLD_AFTER`` have come: they are whole numbers,
    whose sum does not depend on the order.
    """

    def __init__(self, metric: MeanMetric, device: torch.device) -> None:
        self._values = metric.values
        super().__init__(metric, device)

    def reset(self) -> None:
        """Begin anew."""
        self._rows = RunningSum(at_once=True)
        self._number = 0
        self._counts: list[Tensor] = []

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; its own value, computed when it is read."""
        values = self._measured(self._values, outputs, targets).detach()
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
        return Deferred(lambda: self._value_of_mean(total, number))

    def _value_of_mean(self, total: Tensor, number: int) -> Any:
        return self.metric.compute(_pair(total.to(accumulation_dtype(total.device)), number))

    def stand_in(self, name: str, outputs: Any, targets: Any) -> None:
        """Add nothing; a mean always has two sums."""
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
        """What is added over processes: sums, float64, and further ones that the host knows."""
        self._add_counts()
        total = self._rows.total()
        if total is None:
            return torch.zeros(0, dtype=torch.float64), []
        return total.reshape(1), [self._number]

    def state_dict(self) -> dict[str, Any]:
        """The sums, and what waits to be added where there is anything."""
        self._add_counts()
        added, waiting = self._rows.added(), self._rows.waiting()
        if waiting is not None and not waiting.is_floating_point():
            added, waiting = self._rows.total(), None
        if added is None and waiting is not None:
            added = torch.zeros((), dtype=torch.float64)
        sums = None if added is None else _pair(added, self._number)
        return with_waiting({"sums": sums}, waiting)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over sums."""
        self.reset()
        sums, waiting = checked_sums(state_dict, ndim=1)
        if sums is not None:
            if len(sums) != 2:
                raise CheckpointError("the sums of a mean in the checkpoint are not two.")
            total, number = sums.unbind()
            self._rows.load(total, waiting)
            self._number = int(number)


def _pair(total: Tensor, number: int) -> Tensor:
    return torch.stack([total, torch.full_like(total, number)])


def sums_of(metric: Metric, device: torch.device) -> MetricSums:
    """What adds up ``metric``, by the shorter way where its statistics are those of a mean."""
    is_mean = getattr(metric.update, "__func__", None) is MeanMetric.update
    if is_mean and isinstance(metric, MeanMetric):
        return MeanSums(metric, device)
    return MetricSums(metric, device)
