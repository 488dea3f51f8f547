"""Accumulators of one pass: the summed statistics of metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fitkit.core.device_capabilities import accumulation_dtype
from fitkit.core.errors import CheckpointError, DataError
from fitkit.core.logs import Deferred
from fitkit.metrics.entries import entries
from fitkit.metrics.metric import MeanMetric, Metric, as_statistics, counted_values
from fitkit.metrics.running_sum import FOLD_AFTER, RunningSum, invalid_sums, is_real


class MetricAccumulator:
    """The summed statistics of a ``Metric``, whose outputs will be on ``device``."""

    STATE_KEYS: ClassVar = (frozenset({"sums"}),)

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric = metric
        self._device = device
        self._needs_device = False
        self._has_one_value: bool | None = None
        is_plain = type(metric).add_up is Metric.add_up
        self._add_up = None if is_plain else lambda rows, _: metric.add_up(rows)
        self.reset()

    def reset(self) -> None:
        """Discard everything added."""
        self._rows = RunningSum(self._add_up, at_once=True)
        self._num_statistics: int | None = None
        self._has_restored_sums = False

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
        if self._has_restored_sums:
            self._require_same_number(name, row)
        return row

    def _require_same_number(self, name: str, row: Tensor) -> None:
        """Raise ``CheckpointError`` if the restored sums are those of another metric."""
        self._has_restored_sums = False
        added, waiting = self._rows.added(), self._rows.waiting()
        restored = added if waiting is None else self._add_up_rows(waiting)
        computed = self._add_up_rows(row[None])
        if restored is not None and len(restored) != len(computed):
            raise CheckpointError(
                f"metric {name!r} had {len(restored)} sums when the epoch was interrupted in the "
                f"middle and has {len(computed)} now: go on with the same metric, or from the end "
                f"of an epoch."
            )

    def _add_up_rows(self, rows: Tensor) -> Tensor:
        return self.metric.add_up(rows.cpu().to(torch.float64))

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred | None:
        """Add one batch; return its own value, which is computed when it is read.

        It is ``None`` for a metric with several values, whose names are not known before.
        """
        row = self._statistics(name, outputs, targets)
        if self._has_one_value is None:
            self._has_one_value = self._computes_one_value(name, len(row))
        self._rows.add(row)
        return Deferred(self._value_of, row) if self._has_one_value else None

    def _computes_one_value(self, name: str, num_statistics: int) -> bool:
        """Whether the metric has one value; raises ``DataError`` if it cannot be logged.

        Found out for statistics of ones, which are read without waiting for the device.
        """
        ones = torch.ones(1, num_statistics, dtype=torch.float64)
        try:
            value = self.metric.compute(self.metric.add_up(ones))
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            return True  # statistics of real samples are never so
        return list(entries(name, value)) == [name]

    def _value_of(self, *statistics: Any) -> Any:
        return self.metric.compute(self._sums_of(*statistics))

    def _sums_of(self, row: Tensor) -> Tensor:
        return self.metric.add_up(row.to(accumulation_dtype(row.device)).unsqueeze(0))

    def sums_behind(self, value: Deferred) -> Tensor:
        """The sums of the batch whose value ``measure`` has returned."""
        return self._sums_of(*value.args)

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
        self._has_restored_sums = True


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
        self._number: int | Tensor = 0
        self._totals: list[Tensor] = []  # counts of batches that are not added yet
        self._numbers: list[Tensor] = []  # of the values of batches of which only the device knows

    def measure(self, name: str, outputs: Any, targets: Any) -> Deferred:
        """Add one batch; return its own value, which is computed when it is read."""
        values, number = counted_values(self._call(self._values, outputs, targets))
        values = values.detach()
        if isinstance(number, Tensor):
            self._numbers.append(number)
        else:
            self._number += number
        if values.dtype is torch.bool:
            total = values.count_nonzero()
            self._totals.append(total)
        else:
            self._add_counts()
            total = values.to(accumulation_dtype(values.device)).sum()
            self._rows.add(total)
        if max(len(self._totals), len(self._numbers)) >= FOLD_AFTER:
            self._add_counts()
        return Deferred(self._value_of, total, number)

    def _sums_of(self, total: Tensor, number: int | Tensor) -> Tensor:  # type: ignore[override]
        return _pair(total.to(accumulation_dtype(total.device)), number)

    def _add_counts(self) -> None:
        if self._totals:
            self._rows.add(torch.stack(self._totals).sum())
            self._totals = []
        if self._numbers:
            self._number = torch.stack(self._numbers).sum() + self._number
            self._numbers = []

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
        if isinstance(self._number, Tensor):
            return _pair(total, self._number), []
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
                raise CheckpointError(
                    f"a mean has two sums, but {len(sums)} were saved in the middle of the epoch: "
                    f"go on with the same metric, or from the end of an epoch."
                )
            total, number = sums.unbind()
            self._rows.load(total, waiting)
            self._number = int(number)


def make_accumulator(metric: Metric, device: torch.device) -> MetricAccumulator:
    """A ``MeanAccumulator`` if the metric has the statistics of ``MeanMetric``."""
    is_mean = getattr(metric.update, "__func__", None) is MeanMetric.update
    if is_mean and isinstance(metric, MeanMetric):
        return MeanAccumulator(metric, device)
    return MetricAccumulator(metric, device)


def _pair(total: Tensor, number: int | Tensor) -> Tensor:
    if isinstance(number, Tensor):
        return torch.stack([total, number.to(total.device).to(total.dtype)])
    return torch.stack([total, torch.full_like(total, number)])


def _state(sums: Tensor | None, waiting: Tensor | None) -> dict[str, Any]:
    return {"sums": sums} if waiting is None else {"sums": sums, "waiting": waiting}


def _checked_state(state: dict[str, Any], *, waiting_ndim: int) -> tuple[Any, Any]:
    sums, waiting = state["sums"], state.get("waiting")
    fits = sums is None or is_real(sums, ndim=1)
    if not fits or not (waiting is None or is_real(waiting, ndim=waiting_ndim)):
        raise invalid_sums("sums of a metric")
    return sums, waiting
