"""Meters: the loss and the metrics of one phase, added up on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.core.devices import is_on_host
from fitkit.core.errors import CheckpointError, ConfigurationError, DataError, listed
from fitkit.core.types import StepOutput
from fitkit.metrics.mean_sums import MeanSums, sums_of
from fitkit.metrics.metric import Metric, as_scalar, is_reserved
from fitkit.metrics.stateful import StatefulMetric, accumulates
from fitkit.metrics.sums import MetricSums, WeightedMean

Meter = WeightedMean | MetricSums | StatefulMetric


class Meters:
    """The loss and the metrics of one phase.

    Args:
        metrics: by name: a function ``(outputs, targets) -> mean over the batch``, a ``Metric``, or
            an object with ``update``, ``compute`` and ``reset`` (torchmetrics), which is copied.
        device: where outputs will be.
    """

    def __init__(self, metrics: Mapping[str, Any], device: torch.device) -> None:
        self._loss = WeightedMean()
        self._functions: dict[str, Callable[[Any, Any], Any]] = {}
        self._meters: dict[str, Meter] = {}
        for name, metric in metrics.items():
            if isinstance(metric, Metric):
                self._meters[name] = sums_of(metric, device)
            elif accumulates(metric):
                self._meters[name] = StatefulMetric(name, copy.deepcopy(metric), device)
            else:
                self._functions[name] = metric
                self._meters[name] = WeightedMean()
        self._order = list(metrics)
        means = {name: m for name, m in self._meters.items() if isinstance(m, MeanSums)}
        self._only_means = means if len(means) == len(self._meters) else {}
        self._extra: dict[str, WeightedMean] = {}

    def reset(self) -> None:
        """Begin a new phase."""
        for meter in (self._loss, *self._meters.values()):
            meter.reset()
        self._extra.clear()

    def update(self, output: StepOutput, num_samples: int) -> dict[str, Any]:
        """Add one batch of ``num_samples`` samples.

        Returns:
            the batch's own values by name, as tensors or ``Deferred``: for the batch logs.
        """
        loss = output.loss.detach()
        if not num_samples:
            self._stand_in(output)
            return {"loss": loss}
        self._loss.add(loss, num_samples)
        batch: dict[str, Any] = {"loss": loss}
        if self._order and output.outputs is not None:
            self._update_metrics(output, num_samples, batch)
        for name, value in output.logs.items():
            scalar = as_scalar(name, value)
            self._extra_mean(name).add(scalar, num_samples)
            batch[name] = scalar
        return batch

    def _stand_in(self, output: StepOutput) -> None:
        """A batch that counts nothing only shows what there is to add up."""
        with torch.no_grad():
            for name, meter in self._meters.items():
                if isinstance(meter, MetricSums) and output.outputs is not None:
                    meter.stand_in(name, output.outputs, output.targets)
        for name in output.logs:
            self._extra_mean(name)

    def _update_metrics(self, output: StepOutput, num_samples: int, batch: dict[str, Any]) -> None:
        if self._only_means and isinstance(output.outputs, Tensor):
            outputs = output.outputs.detach()  # cheaper than turning gradients off
            for name, meter in self._only_means.items():
                batch[name] = meter.measure(name, outputs, output.targets)
            return
        with torch.no_grad():
            for name in self._order:
                self._update_one(name, output, num_samples, batch)

    def _update_one(
        self, name: str, output: StepOutput, num_samples: int, batch: dict[str, Any]
    ) -> None:
        meter = self._meters[name]
        if isinstance(meter, WeightedMean):
            value = as_scalar(name, self._functions[name](output.outputs, output.targets))
            meter.add(value, num_samples)
            batch[name] = value
        elif isinstance(meter, MetricSums):
            batch[name] = meter.measure(name, output.outputs, output.targets)
        else:
            meter.update(output.outputs, output.targets)

    def _extra_mean(self, name: str) -> WeightedMean:
        if name in self._meters or is_reserved(name):
            raise DataError(
                f"the training step logs {name!r}, which is the name of a metric or of a value "
                f"that fitkit logs itself: choose another name."
            )
        return self._extra.setdefault(name, WeightedMean())

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The values over everything added, read from the device in one go.

        Args:
            reduce: sums a float64 vector on the host over the processes; called once, whatever the
                data.
        """
        values = self._values(reduce)
        for name, stateful in self._meters.items():
            if isinstance(stateful, StatefulMetric):
                computed = stateful.compute()
                if clashes := computed.keys() & values.keys():
                    raise ConfigurationError(
                        f"metric {name!r} computes {listed(clashes)}, which another metric logs "
                        f"already: add one of them under another name."
                    )
                values.update(computed)
        return {name: values[name] for name in self._columns(values)}

    def running(self) -> dict[str, float]:
        """The values so far, for showing; metrics that accumulate by themselves are left out."""
        return self._values()

    def _values(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        meters = self._additive()
        parts = _read([meter.packed() for meter in meters.values()])
        packed = torch.cat(parts)
        packed = packed if reduce is None else reduce(packed)
        sums = packed.split_with_sizes([len(part) for part in parts])
        return {
            name: _value(meter, own)
            for (name, meter), own in zip(meters.items(), sums, strict=True)
            if _has_values(meter, own)
        }

    def _additive(self) -> dict[str, WeightedMean | MetricSums]:
        additive: dict[str, WeightedMean | MetricSums] = {"loss": self._loss}
        for name, meter in self._meters.items():
            if not isinstance(meter, StatefulMetric):
                additive[name] = meter
        return {**additive, **self._extra}

    def _columns(self, values: Mapping[str, float]) -> list[str]:
        """Names in the order in which the metrics were added, the loss first."""
        first = ["loss", *(name for name in self._order if name in values)]
        return first + [name for name in values if name not in first]

    def state_dict(self) -> dict[str, Any]:
        """Everything added so far."""
        return {
            "loss": self._loss.state_dict(),
            "metrics": {name: meter.state_dict() for name, meter in self._meters.items()},
            "extra": {name: meter.state_dict() for name, meter in self._extra.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was added.

        Raises:
            CheckpointError: the metrics are not those that were saved.
        """
        saved = state_dict["metrics"]
        if set(saved) != set(self._meters):
            raise CheckpointError(
                f"the checkpoint was made in the middle of an epoch with the metrics "
                f"{listed(saved)}, this run has {listed(self._meters)}: resume with the same "
                f"metrics, or from a checkpoint at the end of an epoch."
            )
        self._loss.load_state_dict(state_dict["loss"])
        for name, meter in self._meters.items():
            meter.load_state_dict(saved[name])
        for name, state in state_dict["extra"].items():
            self._extra_mean(name).load_state_dict(state)


def _read(parts: list[tuple[Tensor, list[float]]]) -> list[Tensor]:
    """Each meter's sums as one vector on the host; those on a device are read in one go."""
    there = [sums for sums, _ in parts if not is_on_host(sums)]
    read = iter(
        torch.cat(there).cpu().split_with_sizes([len(one) for one in there]) if there else ()
    )
    on_host = [sums if is_on_host(sums) else next(read) for sums, _ in parts]
    return [
        torch.cat([sums, torch.tensor(further, dtype=torch.float64)])
        for sums, (_, further) in zip(on_host, parts, strict=True)
    ]


def _has_values(meter: WeightedMean | MetricSums, sums: Tensor) -> bool:
    """Whether anything was added; a custom step need not bring what metrics read."""
    return bool(len(sums)) and (isinstance(meter, MetricSums) or bool(sums[1]))


def _value(meter: WeightedMean | MetricSums, sums: Tensor) -> float:
    if isinstance(meter, MetricSums):
        return float(meter.metric.compute(sums))
    return float(sums[0] / sums[1])
