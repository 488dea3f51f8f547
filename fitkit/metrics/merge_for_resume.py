"""Merges the metric states of several ranks, for a resume on another number of ranks."""

from __future__ import annotations

from typing import Any

import torch

from fitkit.core.errors import CheckpointError
from fitkit.metrics.weighted_mean import WeightedMean


def merge_meter_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one ``Meters`` with the sums of several, or ``CheckpointError``."""
    if len(states) == 1:
        return states[0]
    extra = {name for state in states for name in state["extra"]}
    return {
        "loss": _merged_means([state["loss"] for state in states]),
        "metrics": {
            name: _merged_metric(name, [state["metrics"][name] for state in states])
            for name in states[0]["metrics"]
        },
        "extra": {
            name: _merged_means([s["extra"][name] for s in states if name in s["extra"]])
            for name in extra
        },
    }


def zero_meter_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a ``Meters`` like that of ``state`` which has added nothing."""
    zero_mean = WeightedMean().state_dict()
    return {
        "loss": zero_mean,
        "metrics": {
            name: zero_mean if "weight" in metric else {"sums": None}
            for name, metric in state["metrics"].items()
        },
        "extra": {},
    }


def _merged_metric(name: str, states: list[dict[str, Any]]) -> dict[str, Any]:
    if "weight" in states[0]:
        return _merged_means(states)
    if "sums" in states[0]:
        summed = [state["sums"] for state in states if state["sums"] is not None]
        sums = {"sums": torch.stack(summed).sum(0) if summed else None}
        waiting = [state["waiting"] for state in states if "waiting" in state]
        return {**sums, "waiting": torch.cat(waiting)} if waiting else sums
    raise CheckpointError(
        f"metric {name!r} accumulates by itself, so the states of several ranks cannot be merged "
        f"for another number of ranks: resume on {len(states)} ranks, or from a checkpoint at the "
        f"end of an epoch."
    )


def _merged_means(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one ``WeightedMean`` with the sums of several."""
    mean = WeightedMean()
    merged = mean.state_dict()
    total = torch.zeros((), dtype=torch.float64)
    for state in states:
        mean.load_state_dict(state)
        more, weight = mean.sums()
        total = total + more.cpu()
        merged["weight"] += float(weight) if isinstance(weight, torch.Tensor) else weight
        merged["num_batches"] += mean.state_dict()["num_batches"]
    return {**merged, "total": total}
