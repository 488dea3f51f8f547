"""Merges the metric states of several ranks, for a resume on another number of ranks."""

from __future__ import annotations

from typing import Any

import torch

from fitkit.metrics.epoch_metric import merge_epoch_states
from fitkit.metrics.weighted_mean import WeightedMean


def merge_meter_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one ``Meters`` with the sums of several.

    Metrics that accumulate by themselves are merged, or refused, when the state is loaded.
    """
    if len(states) == 1:
        return states[0]
    return {
        "loss": _merged_means([state["loss"] for state in states]),
        "metrics": {
            name: _merged_metric(name, [state["metrics"][name] for state in states])
            for name in states[0]["metrics"]
        },
        "extra": _merged_by_name([state["extra"] for state in states]),
        "turn": max(state.get("turn", 0) for state in states),
    }


def zero_meter_state(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a ``Meters`` like that of ``state`` which has added nothing."""
    return {
        "loss": WeightedMean().state_dict(),
        "metrics": {name: _zero(metric) for name, metric in state["metrics"].items()},
        "extra": {},
        "turn": state.get("turn", 0),
    }


def _zero(metric: dict[str, Any]) -> dict[str, Any]:
    if "weight" in metric or "entries" in metric:
        return WeightedMean().state_dict()
    if "sums" in metric:
        return {"sums": None}
    if "turns" in metric:
        return {"turns": [], "form": None, "leaves": []}
    return {"updated": False, "state": {}}


def _merged_metric(name: str, states: list[dict[str, Any]]) -> dict[str, Any]:
    if any("entries" in state for state in states):  # a rank without a batch has a mean
        return {"entries": _merged_by_name([state.get("entries", {}) for state in states])}
    if "weight" in states[0]:
        return _merged_means(states)
    if "sums" in states[0]:
        summed = [state["sums"] for state in states if state["sums"] is not None]
        sums = {"sums": torch.stack(summed).sum(0) if summed else None}
        waiting = [state["waiting"] for state in states if "waiting" in state]
        return {**sums, "waiting": torch.cat(waiting)} if waiting else sums
    if "turns" in states[0]:
        return merge_epoch_states(name, states)
    return {"ranks": states}


def _merged_by_name(states: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for state in states for name in state)
    return {name: _merged_means([s[name] for s in states if name in s]) for name in names}


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
