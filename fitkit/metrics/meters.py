"""Meters: the loss and the metrics of one pass over data, summed on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import CheckpointError, ConfigurationError, DataError, listed
from fitkit.core.state_placement import is_on_host
from fitkit.core.tree import map_tensors
from fitkit.core.types import StepOutput
from fitkit.metrics.accumulators import MeanAccumulator, MetricAccumulator, make_accumulator
from fitkit.metrics.metric import Metric, as_scalar, is_reserved
from fitkit.metrics.ranks import Ranks, sum_by_name
from fitkit.metrics.stateful import StatefulMetric, accumulates
from fitkit.metrics.weighted_mean import Weight, WeightedMean

Meter = WeightedMean | MetricAccumulator | StatefulMetric

_OPTIONAL_KEYS = {"waiting", "on_device", "num_batches", "pairs"}  # of the state of a meter


class Meters:
    """The loss and the metrics of one pass over data.

    Args:
        metrics: by name: a function ``(outputs, targets) -> mean over the batch``, a ``Metric``, or
            an object with ``update``, ``compute`` and ``reset`` (torchmetrics), which is copied.
        device: the device of the outputs.
    """

    def __init__(self, metrics: Mapping[str, Any], device: torch.device) -> None:
        self._loss = WeightedMean()
        self._functions: dict[str, Callable[[Any, Any], Any]] = {}
        self._meters: dict[str, Meter] = {}
        for name, metric in metrics.items():
            if isinstance(metric, Metric):
                self._meters[name] = make_accumulator(metric, device)
            elif accumulates(metric):
                self._meters[name] = StatefulMetric(name, copy.deepcopy(metric), device)
            else:
                self._functions[name] = metric
                self._meters[name] = WeightedMean()
        means = {name: m for name, m in self._meters.items() if isinstance(m, MeanAccumulator)}
        self._only_means = means if len(means) == len(self._meters) else {}
        self._extra: dict[str, WeightedMean] = {}

    def reset(self) -> None:
        """Begin a new pass."""
        for meter in (self._loss, *self._meters.values()):
            meter.reset()
        self._extra.clear()

    def update(
        self, output: StepOutput, num_samples: int, weight: Weight | None = None
    ) -> dict[str, Any]:
        """Add one batch.

        Args:
            output: loss, outputs and targets, and values that the step logs.
            num_samples: samples that this rank counts, the weight of metric functions and of logged
                values; with 0 the batch counts nothing.
            weight: what the loss is a mean over, a number or a scalar tensor, which is not read on
                a device; ``None``: ``num_samples``. With 0 the loss counts nothing.

        Returns:
            the values of the batch by name, as tensors or ``Deferred``, for the batch logs.
        """
        loss = output.loss.detach()
        if not num_samples:
            return {"loss": loss}
        self._loss.add(loss, num_samples if weight is None else weight)
        batch: dict[str, Any] = {"loss": loss}
        if self._meters and output.outputs is not None:
            self._update_metrics(output, num_samples, batch)
        for name, value in output.logs.items():
            scalar = as_scalar(name, value)
            self._extra_mean(name).add(scalar, num_samples)
            batch[name] = scalar
        return batch

    def _update_metrics(self, output: StepOutput, num_samples: int, batch: dict[str, Any]) -> None:
        if self._only_means and isinstance(output.outputs, Tensor):
            outputs = output.outputs.detach()  # cheaper than no_grad
            for name, mean in self._only_means.items():
                batch[name] = mean.measure(name, outputs, output.targets)
            return
        with torch.no_grad():
            for name, meter in self._meters.items():
                if isinstance(meter, WeightedMean):
                    value = as_scalar(name, self._functions[name](output.outputs, output.targets))
                    meter.add(value, num_samples)
                    batch[name] = value
                elif isinstance(meter, MetricAccumulator):
                    batch[name] = meter.measure(name, output.outputs, output.targets)
                else:  # what it keeps must not keep the graph
                    meter.update(map_tensors(Tensor.detach, output.outputs), output.targets)

    def _extra_mean(self, name: str) -> WeightedMean:
        if name in self._meters or is_reserved(name):
            raise DataError(
                f"the training step logs {name!r}, which is the name of a metric or of a value "
                f"that fitkit logs itself: choose another name."
            )
        return self._extra.setdefault(name, WeightedMean())

    def compute(self, ranks: Ranks | None = None) -> dict[str, float]:
        """The values over everything added, read from the device in one transfer.

        Args:
            ranks: the ranks whose sums are added, all of which call this; ``None``: one rank.
        """
        values = self._values(ranks)
        for name, stateful in self._meters.items():
            if isinstance(stateful, StatefulMetric):
                computed = stateful.compute()
                if clashes := computed.keys() & values.keys():
                    raise ConfigurationError(
                        f"metric {name!r} computes {listed(clashes)}, which another metric logs "
                        f"already: add one of them under another name."
                    )
                values.update(computed)
        # in the order in which metrics were added, the loss first
        names = dict.fromkeys(["loss", *self._meters, *values])
        return {name: values[name] for name in names if name in values}

    def running(self) -> dict[str, float]:
        """The values so far, without metrics that accumulate by themselves."""
        return self._values()

    def _values(self, ranks: Ranks | None = None) -> dict[str, float]:
        meters: dict[str, WeightedMean | MetricAccumulator] = {"loss": self._loss}
        for name, meter in self._meters.items():
            if not isinstance(meter, StatefulMetric):
                meters[name] = meter
        meters.update(self._extra)
        parts = _read([meter.packed() for meter in meters.values()])
        values: dict[str, float] = {}
        for name, sums in sum_by_name(dict(zip(meters, parts, strict=True)), ranks).items():
            meter_of_name = meters.get(name)  # None: only other ranks have logged it
            if isinstance(meter_of_name, MetricAccumulator):
                if len(sums):  # a custom step need not return what metrics need
                    values[name] = float(meter_of_name.metric.compute(sums))
            elif (mean := WeightedMean.value_of(sums)) is not None:
                values[name] = mean
        return values

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {
            "loss": self._loss.state_dict(),
            "metrics": {name: meter.state_dict() for name, meter in self._meters.items()},
            "extra": {name: meter.state_dict() for name, meter in self._extra.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all sums, or raise ``CheckpointError`` if this run has other metrics."""
        saved = state_dict["metrics"]
        if set(saved) != set(self._meters):
            raise CheckpointError(
                f"the epoch was interrupted in the middle with the metrics {listed(saved)}, this "
                f"run has {listed(self._meters)}: go on with the same metrics, or from the end of "
                f"an epoch."
            )
        self._loss.load_state_dict(state_dict["loss"])
        for name, meter in self._meters.items():
            if set(meter.state_dict()) - _OPTIONAL_KEYS != set(saved[name]) - _OPTIONAL_KEYS:
                raise CheckpointError(
                    f"metric {name!r} is of another kind than when the epoch was interrupted in "
                    f"the middle: go on with the same metric, or from the end of an epoch."
                )
            meter.load_state_dict(saved[name])
        for name, state in state_dict["extra"].items():
            self._extra_mean(name).load_state_dict(state)


def _read(parts: list[tuple[Tensor, list[float]]]) -> list[Tensor]:
    """The sums of each meter as one vector on the host; device tensors are read in one transfer."""
    on_device = [sums for sums, _ in parts if not is_on_host(sums)]
    sizes = [len(sums) for sums in on_device]
    read = iter(torch.cat(on_device).cpu().split_with_sizes(sizes) if on_device else ())
    return [
        torch.cat(
            [
                sums if is_on_host(sums) else next(read),
                torch.tensor(host_numbers, dtype=torch.float64),
            ]
        )
        for sums, host_numbers in parts
    ]
