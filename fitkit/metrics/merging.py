"""What several processes had added up, as the state of one ``Meters``."""

from __future__ import annotations

from typing import Any

import torch

from fitkit.core.errors import CheckpointError
from fitkit.metrics.sums import WeightedMean


def merged(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one ``Meters`` with the sums of several.

    Raises:
        CheckpointError: a metric accumulates by itself, so that its sums cannot be put together.
    """
    if len(states) == 1:
        return states[0]
    extra = {name for state in states for name in state["extra"]}
    return {
        "loss": _merged_means([state["loss"] for state in states]),
        "metrics": {
            name: _merged_one(name, [state["metrics"][name] for state in states])
            for name in states[0]["metrics"]
        },
        "extra": {
            name: _merged_means([s["extra"][name] for s in states if name in s["extra"]])
            for name in extra
        },
    }


def emptied(state: dict[str, Any]) -> dict[str, Any]:
    """The state of having added nothing, in as many sums as ``state`` has."""
    nothing = WeightedMean().state_dict()

    def empty(one: dict[str, Any]) -> dict[str, Any]:
        if "weight" in one:
            return nothing
        none = {"sums": None if one["sums"] is None else torch.zeros_like(one["sums"])}
        if "waiting" in one:  # a row of zeros: as many sums as the others have
            none["waiting"] = torch.zeros_like(one["waiting"][:1])
        return none

    return {
        "loss": nothing,
        "metrics": {name: empty(one) for name, one in state["metrics"].items()},
        "extra": dict.fromkeys(state["extra"], nothing),
    }


def _merged_one(name: str, states: list[dict[str, Any]]) -> dict[str, Any]:
    if "weight" in states[0]:
        return _merged_means(states)
    if "sums" in states[0]:
        found = [state["sums"] for state in states if state["sums"] is not None]
        sums = {"sums": torch.stack(found).sum(0) if found else None}
        waiting = [state["waiting"] for state in states if "waiting" in state]
        return {**sums, "waiting": torch.cat(waiting)} if waiting else sums
    raise CheckpointError(
        f"metric {name!r} accumulates by itself, so what several processes have accumulated cannot "
        f"be dealt out to another number of them: go on with {len(states)} processes, or from a "
        f"checkpoint at the end of an epoch."
    )


def _merged_means(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The state of one ``WeightedMean`` with the sums of several."""
    mean = WeightedMean()
    total, weight = torch.zeros((), dtype=torch.float64), 0
    for state in states:
        mean.load_state_dict(state)
        more, count = mean.sums()
        total, weight = total + more.cpu(), weight + count
    return {"total": total, "weight": weight, "waiting": None, "weights": []}
