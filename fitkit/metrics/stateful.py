"""StatefulMetric: wraps metrics that accumulate by themselves, such as those of torchmetrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fitkit.core.logs import as_float
from fitkit.core.state_placement import detached_copy, device_tensor_paths, move_paths
from fitkit.core.tree import map_tensors
from fitkit.metrics.metric_state import load_state, state_of


def accumulates(metric: Any) -> bool:
    """Whether ``metric`` has the ``update``, ``compute`` and ``reset`` of a stateful metric."""
    return not isinstance(metric, type) and all(
        callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")
    )


class StatefulMetric:
    """One accumulation (training or validation) of a metric that has its own state.

    Args:
        name: name in the logs; a metric with several values logs ``name_key`` for each.
        metric: the metric, not shared with another accumulation.
        device: the device of the outputs.
    """

    def __init__(self, name: str, metric: Any, device: torch.device) -> None:
        self.name = name
        self._device = device
        self._metric: Any = metric.to(device) if isinstance(metric, nn.Module) else metric
        self._updated = False
        if callable(getattr(metric, "persistent", None)):
            metric.persistent(mode=True)  # torchmetrics: include its state in state_dict

    def reset(self) -> None:
        """Discard everything added."""
        self._metric.reset()
        self._updated = False

    def update(self, outputs: Any, targets: Any) -> None:
        """Add one batch."""
        self._metric.update(outputs, targets)
        self._updated = True

    def compute(self) -> dict[str, float]:
        """Its value, or each of its values; empty if nothing was added."""
        if not self._updated:
            return {}
        value = self._metric.compute()
        if isinstance(value, Mapping):
            return {f"{self.name}_{key}": as_float(str(key), item) for key, item in value.items()}
        return {self.name: as_float(self.name, value)}

    def state_dict(self) -> dict[str, Any]:
        """A copy of the metric's state."""
        state: Any = map_tensors(detached_copy, state_of(self._metric))
        saved = {"updated": self._updated, "state": state}
        on_device = device_tensor_paths(state)
        return {**saved, "on_device": on_device} if on_device else saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metric's state."""
        self.reset()
        if state_dict["updated"]:
            paths = state_dict.get("on_device", ())
            state = move_paths(state_dict["state"], paths, self._device)
            load_state(self.name, self._metric, state)
            if isinstance(self._metric, nn.Module):  # torchmetrics does not move loaded tensors
                self._metric.to(self._device)
            _mark_updated(self._metric)
        self._updated = state_dict["updated"]


def _mark_updated(metric: Any) -> None:
    """Torchmetrics counts its updates outside of its state, and warns if there were none."""
    # modules(): a collection or a wrapper contains other metrics
    parts: Any = metric.modules() if isinstance(metric, nn.Module) else ()
    for part in parts:
        if hasattr(part, "_update_count"):
            part._update_count = max(1, part._update_count)  # noqa: SLF001 - it has no public form
            part._computed = None  # noqa: SLF001
