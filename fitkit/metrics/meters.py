"""Meters: the loss and the metrics of one pass over data, summed on the device."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import CheckpointError, ConfigurationError, DataError, add_note, listed
from fitkit.core.types import StepOutput
from fitkit.metrics.accumulators import MeanAccumulator, MetricAccumulator, make_accumulator
from fitkit.metrics.entries import loggable
from fitkit.metrics.epoch_metric import EpochMeter, EpochMetric
from fitkit.metrics.function_meter import FunctionMeter
from fitkit.metrics.merge_states import require_mergeable
from fitkit.metrics.metric import Metric, as_scalar, is_reserved
from fitkit.metrics.outputs import detach
from fitkit.metrics.ranks import Ranks, sum_by_name
from fitkit.metrics.running_sum import invalid_sums, read_together
from fitkit.metrics.stateful import StatefulMetric, accumulates
from fitkit.metrics.weighted_mean import Weight, WeightedMean, weighted_sums

Meter = FunctionMeter | MetricAccumulator | StatefulMetric | EpochMeter


class Meters:
    """The loss and the metrics of one pass over data.

    Args:
        metrics: by name: a function ``(outputs, targets) -> mean over the batch``, a ``Metric``, an
            ``EpochMetric``, or an object with ``update``, ``compute`` and ``reset`` (torchmetrics),
            which is copied.
        device: the device of the outputs.
        num_ranks: ranks that share the pass.

    Raises:
        ConfigurationError: a metric cannot be computed over the samples of several ranks.
    """

    def __init__(
        self, metrics: Mapping[str, Any], device: torch.device, *, num_ranks: int = 1
    ) -> None:
        self._loss = WeightedMean()
        self._turn = 0
        self._weights: tuple[Weight, int] = (0, 0)  # of the last batch: of the loss, of the others
        self._meters: dict[str, Meter] = {}
        for name, metric in metrics.items():
            if num_ranks > 1 and accumulates(metric) and not isinstance(metric, Metric):
                require_mergeable(name, metric)
            self._meters[name] = self._make_meter(name, metric, device)
        means = {name: m for name, m in self._meters.items() if isinstance(m, MeanAccumulator)}
        self._only_means = means if len(means) == len(self._meters) else {}
        self._extra: dict[str, WeightedMean] = {}

    def _make_meter(self, name: str, metric: Any, device: torch.device) -> Meter:
        if isinstance(metric, Metric):
            return make_accumulator(metric, device)
        if isinstance(metric, EpochMetric):
            return EpochMeter(name, metric)
        if accumulates(metric):
            return StatefulMetric(name, copy.deepcopy(metric), device)
        return FunctionMeter(name, metric, self._require_free)

    def reset(self) -> None:
        """Begin a new pass."""
        self._turn = 0
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
        self.skip()
        if not num_samples:
            return {}
        batch: dict[str, Any] = {}
        weight = num_samples if weight is None else weight
        self._weights = weight, num_samples
        if output.loss is not None:
            loss = output.loss.detach()
            self._loss.add(loss, weight)
            if isinstance(weight, Tensor) or weight:  # without weight it may be NaN
                batch["loss"] = loss
        if self._meters and output.outputs is not None:
            self._update_metrics(output, num_samples, batch)
        for name, value in output.logs.items():
            scalar = as_scalar(name, value)
            self._extra_mean(name).add(scalar, num_samples)
            batch[name] = scalar
        return batch

    def skip(self) -> dict[str, Any]:
        """Count a batch of which this rank adds nothing; return its values, none.

        Ranks take turns in their batches, which gives the samples of all ranks their order.
        """
        self._turn += 1
        return {}

    def batch_sums(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What ranks add up of the values of the last batch, vectors by name."""
        return {
            name: meter.sums_behind(value)
            if (meter := self.accumulator_of(name))
            else weighted_sums(value, self._weights[name != "loss"])
            for name, value in batch.items()
        }

    def accumulator_of(self, name: str) -> MetricAccumulator | None:
        """The sums of a ``Metric``; ``None`` for values whose mean is logged."""
        meter = self._meters.get(name)
        return meter if isinstance(meter, MetricAccumulator) else None

    def _update_metrics(self, output: StepOutput, num_samples: int, batch: dict[str, Any]) -> None:
        outputs, targets = detach(output.outputs), detach(output.targets)
        name = ""
        try:
            if self._only_means and isinstance(outputs, Tensor):  # cheaper than no_grad
                for name, mean in self._only_means.items():
                    batch[name] = mean.measure(name, outputs, targets)
                return
            with torch.no_grad():
                for name, meter in self._meters.items():
                    if isinstance(meter, FunctionMeter):
                        batch.update(meter.measure(outputs, targets, num_samples))
                    elif isinstance(meter, MetricAccumulator):
                        if (value := meter.measure(name, outputs, targets)) is not None:
                            batch[name] = value
                    elif isinstance(meter, EpochMeter):
                        meter.update(outputs, targets, self._turn)
                    else:
                        meter.update(outputs, targets)
        except Exception as error:
            add_note(error, f"raised by metric {name!r}")
            raise

    def _extra_mean(self, name: str) -> WeightedMean:
        if name not in self._extra:
            if name in self._meters or is_reserved(name) or name in self._means_of_functions():
                raise DataError(
                    f"the training step logs {name!r}, which is the name of a metric or of a value "
                    f"that fitkit logs itself: choose another name."
                )
            self._extra[name] = WeightedMean()
        return self._extra[name]

    def _require_free(self, metric: str, name: str) -> None:
        """Raise ``ConfigurationError`` if something else is logged as a value of ``metric``."""
        taken = name in self._extra or name in self._means_of_functions()
        if taken or (name != metric and name in self._meters):
            raise _clash(metric, [name])

    def _means_of_functions(self) -> dict[str, WeightedMean]:
        functions = (m for m in self._meters.values() if isinstance(m, FunctionMeter))
        return {name: mean for meter in functions for name, mean in meter.means.items()}

    def compute(self, ranks: Ranks | None = None) -> dict[str, float]:
        """The values over everything added, read from the device in one transfer.

        What metrics have accumulated by themselves is discarded: it may be all samples.

        Args:
            ranks: the ranks whose sums are added, all of which call this; ``None``: one rank.
        """
        values = self._values(ranks)
        for name, meter in self._meters.items():
            if isinstance(meter, (StatefulMetric, EpochMeter)):
                try:
                    computed = meter.compute(ranks)
                except Exception as error:
                    add_note(error, f"raised by metric {name!r}")
                    raise
                meter.reset()
                if clashes := computed.keys() & values.keys():
                    warnings.warn(f"{_clash(name, clashes)} It is not logged.", stacklevel=2)
                values = {**computed, **values}
        return dict(sorted(values.items(), key=lambda item: self._position(item[0])))

    def _position(self, name: str) -> int:
        """In the order in which metrics were added, the loss before and logs of the step after."""
        if name == "loss":
            return -1
        metrics = [one for one in self._meters if name == one or name.startswith(f"{one}_")]
        return list(self._meters).index(max(metrics, key=len)) if metrics else len(self._meters)

    def running(self) -> dict[str, float]:
        """The values so far, without metrics that accumulate by themselves."""
        return self._values()

    def _values(self, ranks: Ranks | None = None) -> dict[str, float]:
        metrics = {n: m for n, m in self._meters.items() if isinstance(m, MetricAccumulator)}
        means = {"loss": self._loss, **self._means_of_functions(), **self._extra}
        meters: dict[str, WeightedMean | MetricAccumulator] = {**means, **metrics}
        parts = read_together([meter.packed() for meter in meters.values()])
        values: dict[str, float] = {}
        for name, sums in sum_by_name(dict(zip(meters, parts, strict=True)), ranks).items():
            if name in metrics:
                if len(sums):  # a custom step need not return what metrics need
                    values.update(loggable(name, metrics[name].metric.compute(sums)))
            elif (mean := WeightedMean.value_of(sums)) is not None:
                values[name] = mean
        return values

    def state_dict(self) -> dict[str, Any]:
        """All sums."""
        return {
            "loss": self._loss.state_dict(),
            "metrics": {name: meter.state_dict() for name, meter in self._meters.items()},
            "extra": {name: mean.state_dict() for name, mean in self._extra.items()},
            "turn": self._turn,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore all sums, or raise ``CheckpointError`` if this run has other metrics."""
        saved, turn = state_dict["metrics"], state_dict.get("turn", 0)
        parts = (state_dict["loss"], saved, state_dict["extra"])
        if not all(isinstance(part, Mapping) for part in parts) or type(turn) is not int:
            raise invalid_sums("sums of the epoch")
        if set(saved) != set(self._meters):
            raise CheckpointError(
                f"the epoch was interrupted in the middle with the metrics {listed(saved)}, this "
                f"run has {listed(self._meters)}: go on with the same metrics, or from the end of "
                f"an epoch."
            )
        self.reset()
        self._loss.load_state_dict(state_dict["loss"])
        for name, meter in self._meters.items():
            if not any(keys <= saved[name].keys() for keys in meter.STATE_KEYS):
                raise CheckpointError(
                    f"metric {name!r} is of another kind than when the epoch was interrupted in "
                    f"the middle: go on with the same metric, or from the end of an epoch."
                )
            meter.load_state_dict(saved[name])
        for name, state in state_dict["extra"].items():
            self._extra_mean(name).load_state_dict(state)
        self._turn = turn


def _clash(metric: str, names: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(
        f"metric {metric!r} computes {listed(names)}, which another metric or the step logs: add "
        f"one of them under another name."
    )
