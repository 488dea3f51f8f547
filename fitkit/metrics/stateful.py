"""StatefulMetric: wraps metrics that accumulate by themselves, such as those of torchmetrics."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import nn

from fitkit.core.state_placement import copy_to_host, detached_copy, device_tensor_paths, move_paths
from fitkit.core.tree import map_tensors
from fitkit.metrics import merge_states
from fitkit.metrics.entries import loggable
from fitkit.metrics.metric_state import load_state, state_of
from fitkit.metrics.ranks import Ranks


def accumulates(metric: Any) -> bool:
    """Whether ``metric`` has the ``update``, ``compute`` and ``reset`` of a stateful metric."""
    return not isinstance(metric, type) and all(
        callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")
    )


class StatefulMetric:
    """One accumulation (training or validation) of a metric that has its own state.

    Args:
        name: name in the logs; see ``loggable`` for the names of several values.
        metric: the metric, not shared with another accumulation.
        device: the device of the outputs.
    """

    STATE_KEYS: ClassVar = (frozenset({"updated", "state"}), frozenset({"ranks"}))

    def __init__(self, name: str, metric: Any, device: torch.device) -> None:
        self.name = name
        self._device = device
        self._metric: Any = metric.to(device) if isinstance(metric, nn.Module) else metric
        self._updated = False
        if merge_states.is_torchmetrics(metric):
            metric.persistent(mode=True)  # include its state in state_dict
            merge_states.stop_own_sync(metric)

    def reset(self) -> None:
        """Discard everything added."""
        self._metric.reset()
        self._updated = False

    def update(self, outputs: Any, targets: Any) -> None:
        """Add one batch."""
        self._metric.update(outputs, targets)
        self._updated = True

    def compute(self, ranks: Ranks | None = None) -> dict[str, float]:
        """Its values by name, over the samples of all ranks; empty if nothing was added."""
        updated = [self._updated] if ranks is None else ranks.gather_all(self._updated)
        if not any(updated):
            return {}
        if ranks is None or len(updated) == 1:
            return loggable(self.name, self._metric.compute())
        # every rank computes it from the same states; that of one is taken for the same bits
        values = loggable(self.name, self._gathered(ranks).compute())
        common: dict[str, float] = ranks.gather_all(values)[0]
        return common

    def _gathered(self, ranks: Ranks) -> Any:
        """A metric that has accumulated what those of all ranks have."""
        own = None
        if self._updated:
            is_known = merge_states.is_torchmetrics(self._metric)
            state = merge_states.accumulated(self._metric) if is_known else self.state_dict()
            own = map_tensors(copy_to_host, state)
        states = [state for state in ranks.gather_all(own) if state is not None]
        if not merge_states.is_torchmetrics(self._metric):
            return self._merged(states)
        merge_states.set_accumulated(self._metric, states, self._device)
        _mark_updated(self._metric)
        return self._metric

    def _merged(self, states: list[dict[str, Any]]) -> Any:
        """A copy of the metric with the states of several."""
        copies = [copy.deepcopy(self._metric) for _ in states]
        for copied, state in zip(copies, states, strict=True):
            StatefulMetric(self.name, copied, self._device).load_state_dict(state)
        merge_states.merge_into(copies[0], copies[1:], self._device)
        return copies[0]

    def state_dict(self) -> dict[str, Any]:
        """A copy of the metric's state."""
        state: Any = map_tensors(detached_copy, state_of(self._metric))
        saved = {"updated": self._updated, "state": state}
        on_device = device_tensor_paths(state)
        return {**saved, "on_device": on_device} if on_device else saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the metric's state, or raise ``CheckpointError`` if it cannot be merged.

        The state of several ranks has their states under ``"ranks"``.
        """
        self.reset()
        if "ranks" in state_dict:
            states = state_dict["ranks"]
            merge_states.require_mergeable_again(self.name, self._metric, len(states))
            updated = [state for state in states if state["updated"]]
            self._updated = bool(updated)
            if updated:
                self._metric = self._merged(updated)
            return
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
